"""A whole pass, the fused kernel and training steps on a GPU against the CPU; skipped without a GPU."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PRODUCTS, tables_of

from lib.base.tensors import read_tensors
from lib.kernels import native
from lib.kernels.followed import pair_sums
from lib.kernels.fused import fastest_layer_statistics, gpu_loop, layer_statistics
from lib.kernels.sketch import Sketch, placed, product
from lib.labels.groupings import run_groupings
from lib.models.folded import folded
from lib.models.trunk import load_model
from lib.training.gpt2 import Kernels
from lib.training.trainer import Machine, SeedRun
from tests.training.test_train import RECIPE, small_tokens

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.usefixtures("without_grouped_moments"),
]

# Largest difference of a correlation from the CPU's in fp64; the forward pass is in fp32, or bf16 below
TOLERANCE = {"fp64": 1e-4, "fp32": 1e-4, "bf16": 0.05}


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("precision", list(TOLERANCE))
def test_a_pass_has_the_tables_of_the_cpu(make_run, seed_folders, monkeypatch, precision, products):
    monkeypatch.setattr("lib.collect.preflight.run_groupings", run_groupings)
    settings = PRODUCTS[products] | {"token_budget": 200 * 256, "memory_gb": 4.0}
    host = make_run(seed_folders, run="host", **settings)
    device = make_run(seed_folders, run="device", **settings, device="cuda", precision=precision)
    expected, found = tables_of(host), tables_of(device)
    assert device.done["device"] == "cuda" and device.done["precision"] == precision
    statistics = "torch" if precision == "fp64" else "Triton"
    assert device.done["loops"] == f"torch.compile (following), {statistics} (statistics)"
    for column in ("max_corr", "min_corr", "mean_corr", "mean_baseline", "excess_corr", "sparsity"):
        difference = (found["neurons"][column] - expected["neurons"][column]).abs()
        assert difference.max() < TOLERANCE[precision], column
    if precision in ("fp64", "fp32"):
        for column in ("mean", "var", "skew", "kurt", "activation_mean", "activation_std"):
            np.testing.assert_allclose(found["neurons"][column], expected["neurons"][column], rtol=1e-3, atol=1e-4)
        pd.testing.assert_frame_equal(found["losses"], expected["losses"], rtol=1e-4)
        for path in (host.folder / "stats").glob("grouped-*"):
            other = read_tensors(device.folder / "stats" / path.name)
            for key, tensor in read_tensors(path).items():
                found_one = other[key]
                if key.endswith(
                    ".active"
                ):  # in tokens: one whose pre-activation is 0 within rounding may fall on either side
                    count = other[key.replace("active", "count")][..., None]
                    assert ((found_one - tensor) * count).abs().max() < 1.5, key
                else:
                    torch.testing.assert_close(
                        found_one, tensor, rtol=1e-2, atol=1e-2, msg=lambda text, key=key: f"{key}: {text}"
                    )
        examples = [run.stats("examples") for run in (host, device)]
        for key in ("a.value", "c.window"):
            np.testing.assert_allclose(examples[1][key], examples[0][key], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_kernel_gives_what_its_expression_gives(dtype):
    generator = torch.Generator().manual_seed(0)
    tokens, neurons = 600, 200  # several programs of the loop in Triton each way, the last ones not full
    pre = torch.randn(tokens, neurons, generator=generator).cuda()
    counted, sign = (torch.rand(tokens, 1, generator=generator).cuda() for _ in range(2))
    scaling = torch.stack([torch.zeros(neurons), torch.full((neurons,), 40.0)]).cuda()
    given = pre, torch.nn.functional.gelu(pre), (counted > 0.2).float(), 1 - 2 * (sign > 0.5).float(), scaling, scaling
    operands = [
        torch.zeros(tokens, 3 * neurons, dtype=dtype, device="cuda") for _ in range(2)
    ]  # a layer's part of them
    sums = [
        kernel(*given, operand[:, neurons : 2 * neurons])
        for kernel, operand in zip((fastest_layer_statistics, layer_statistics), operands, strict=True)
    ]
    assert gpu_loop(pre.device) is not None
    for compiled, plain in (sums, operands):
        torch.testing.assert_close(
            compiled.float(), plain.float(), rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-2
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sketch_and_followed_pairs_are_those_of_the_cpu(dtype):
    generator = torch.Generator().manual_seed(0)
    tokens, rows, total = 3000, 256, 320  # many tokens a row
    values = torch.randn(tokens, total, generator=generator, dtype=torch.float64).to(dtype)
    row, sign = placed(torch.arange(tokens), rows, 0, own=False)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    made = {}
    for device in ("cpu", "cuda", "cuda again"):
        where = device.split()[0]
        sketch = Sketch(rows, total, wide, where)
        for own in torch.arange(tokens).split(700):
            sketch.update((values[own] * sign[own, None].to(dtype)).to(where), row[own].to(where))
        made[device] = sketch.rows.cpu()
    assert torch.equal(made["cuda"], made["cuda again"])
    torch.testing.assert_close(made["cuda"], made["cpu"], rtol=1e-5, atol=1e-4)
    x, y = values[:, :200], values[:, 200:]
    found = product(x.cuda(), y.cuda()).cpu()
    assert found.dtype == wide
    torch.testing.assert_close(found.double(), x.double().T @ y.double(), rtol=1e-3, atol=0.05)
    pairs = torch.stack([torch.randint(0, n, (500,), generator=generator) for n in (200, 120)])
    want = (x.double()[:, pairs[0]] * y.double()[:, pairs[1]]).sum(0)
    given = x.T.contiguous().cuda(), y.T.contiguous().cuda()
    assert not native.takes("follow", *given)
    torch.testing.assert_close(pair_sums(*given, pairs.cuda()).cpu().double(), want, rtol=1e-4, atol=1e-3)


def test_training_steps_are_those_of_the_cpu(tmp_path):
    def trained(device: str) -> dict[str, torch.Tensor]:
        machine = Machine(device, torch.float32, compiled=False, threads=1)
        run = SeedRun(tmp_path / device, 0, small_tokens().to(device), RECIPE, machine, Kernels())
        run.train(6)
        return {name: weight.detach().cpu() for name, weight in run.weights.items()}

    expected, found = trained("cpu"), trained("cuda")
    for name, weight in expected.items():
        torch.testing.assert_close(
            found[name], weight, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_processed_weights_stay_on_the_cpu(seed_folders):
    assert folded(load_model(seed_folders["a"])).unembedding.device.type == "cpu"
