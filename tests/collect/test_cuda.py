"""A whole pass, the fused kernel and training steps on a GPU against the CPU; skipped without a GPU."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tables_of

from lib.base.tensors import read_tensors
from lib.kernels.fused import fastest_layer_statistics, layer_statistics, native_layer_statistics
from lib.labels.groupings import run_groupings
from lib.models.weights import processed_model
from lib.training.gpt2 import Kernels
from lib.training.trainer import Machine, SeedRun
from tests.training.test_train import RECIPE, small_tokens

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.usefixtures("without_grouped_moments"),
]

# Largest difference of a correlation from the CPU's in fp64; the forward pass is in fp32, or bf16 below
TOLERANCE = {"fp64": 1e-4, "fp32": 1e-4, "bf16": 0.05, "int8": 0.05}


@pytest.mark.parametrize("precision", list(TOLERANCE))
def test_a_pass_has_the_tables_of_the_cpu(make_run, seed_folders, monkeypatch, precision):
    monkeypatch.setattr("lib.collect.preflight.run_groupings", run_groupings)
    settings = {"token_budget": 200 * 256, "memory_gb": 4.0}
    host = make_run(seed_folders, run="host", **settings)
    device = make_run(seed_folders, run="device", **settings, device="cuda", precision=precision)
    expected, found = tables_of(host), tables_of(device)
    assert device.done["device"] == "cuda" and device.done["precision"] == precision
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_the_fused_kernel_gives_what_its_expression_gives(dtype):
    generator = torch.Generator().manual_seed(0)
    tokens, neurons = 600, 200  # several programs of the loop in Triton each way, the last ones not full
    pre, dither = (torch.randn(tokens, neurons, generator=generator).cuda() for _ in range(2))
    counted = (torch.rand(tokens, 1, generator=generator) > 0.2).float().cuda()
    scaling = torch.stack([torch.zeros(neurons), torch.full((neurons,), 40.0)]).cuda()
    given = pre, torch.nn.functional.gelu(pre), counted, scaling, scaling, dither.abs() % 1
    operands = [torch.empty_like(pre, dtype=dtype) for _ in range(2)]
    sums = [
        kernel(*given, operand)
        for kernel, operand in zip((fastest_layer_statistics(), layer_statistics), operands, strict=True)
    ]
    for compiled, plain in (sums, operands):
        torch.testing.assert_close(compiled.float(), plain.float(), rtol=1e-4, atol=1e-2)
    assert (native_layer_statistics(*given, operands[0]) is None) == (dtype == torch.int8)  # which torch.compile takes


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
    assert processed_model(seed_folders["a"]).W_U.device.type == "cpu"
