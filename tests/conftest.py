"""Fixtures: small models with the shipped tokeniser, and runs on them in a temporary folder."""

import lib  # noqa: F401  before torch, as in every entry: OpenMP reads lib's setting when torch loads it

# isort: split
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from local_hub import LocalHub
from transformers import GPT2Config, GPT2LMHeadModel

from lib.base.browser import FLAGS, chromium
from lib.base.params import ROOT, Params
from lib.chapters.universality.tables import assignments, tabulate
from lib.collect.passes import collect
from lib.collect.planner import FIRST
from lib.run import Run
from lib.text.blocks import read_text

if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: threads of one would only wait for those of another
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

TOKENIZER = ROOT / "data" / "tokenizer"
TEXT = ROOT / "data" / "tokens.safetensors"
SHIPPED = ROOT / "data" / "seeds"
CHROMIUM = chromium()
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium on this machine; install it or name one with CHROMIUM=/path"
)


def pytest_collection_modifyitems(items):
    """The longest file first, so that no worker waits for it at the end."""
    items.sort(key=lambda item: item.path.stem != "test_shipped_seeds")


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, driven by Playwright."""
    driver = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    with driver.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def save_seed(model: GPT2LMHeadModel, folder: Path) -> Path:
    """Writes a model with the shipped tokeniser as a seed folder."""
    model.save_pretrained(folder)
    shutil.copy(TOKENIZER / "tokenizer.json", folder)
    shutil.copy(TOKENIZER / "tokenizer_config.json", folder)
    return folder


# How the products of two seeds are kept: exact, with a row for each token or summed over all pairs, or estimated
PRODUCTS = {
    "rows": {"products": "exact"},
    "sums": {"products": "exact", "sketch_rows": 64},
    "sketch": {"products": "sketch", "sketch_rows": 4096},
}


def small_model(seed: int, layers: int = 2, neurons: int = 48) -> GPT2LMHeadModel:
    """An untrained GPT-2 of 2 × 48 neurons; its weights are large enough for activations to differ from linear."""
    torch.manual_seed(seed)
    config = GPT2Config(
        n_layer=layers,
        n_embd=32,
        n_head=2,
        n_inner=neurons,
        n_positions=256,
        vocab_size=8192,
        initializer_range=0.3,
        activation_function="gelu_new",
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def processed_model(folder: Path | str):
    """The model as TransformerLens processes it, which processed weights are compared with."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
    bridge.enable_compatibility_mode(disable_warnings=True)
    return bridge


def activations(folder: Path, blocks: int | torch.Tensor) -> np.ndarray:
    """A plain model's fp64 activations on counted tokens of the shipped text's start, (tokens, layers · neurons).

    `blocks` is their number, or which ones, in this order.
    """
    chosen = torch.arange(blocks) if isinstance(blocks, int) else blocks
    model, text = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float64).eval(), read_text(TEXT)
    seen = []
    for block in model.transformer.h:
        block.mlp.act.register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        model(text.tokens[chosen])
    return torch.cat([one[text.counted(chosen)] for one in seen], 1).numpy()


def followed_blocks(blocks: int) -> torch.Tensor:
    """Blocks of a text of so many that come after its first part, on whose tokens matches of a sketch are measured."""
    everyone = torch.arange(blocks)
    return everyone[everyone % FIRST != 0]


def tables_of(run: Run) -> dict[str, pd.DataFrame]:
    """A run's first tables, after its pass, and its one-to-one matches."""
    collect(run)
    tabulate(run)
    assignments(run)
    return {path.stem: run.table(path.stem) for path in (run.folder / "tables").glob("*.parquet")}


def permuted(model: GPT2LMHeadModel, seed: int) -> tuple[GPT2LMHeadModel, list[torch.Tensor]]:
    """The same function with the neurons of each layer in another order; order[l][new] = old."""
    generator = torch.Generator().manual_seed(seed)
    copy = GPT2LMHeadModel(model.config).eval()
    copy.load_state_dict(model.state_dict())
    orders = []
    with torch.no_grad():
        for block in copy.transformer.h:
            order = torch.randperm(block.mlp.c_fc.bias.shape[0], generator=generator)
            block.mlp.c_fc.weight.copy_(block.mlp.c_fc.weight[:, order].clone())
            block.mlp.c_fc.bias.copy_(block.mlp.c_fc.bias[order].clone())
            block.mlp.c_proj.weight.copy_(block.mlp.c_proj.weight[order].clone())
            orders.append(order)
    return copy, orders


@pytest.fixture(scope="session")
def seed_folders(tmp_path_factory) -> dict[str, Path]:
    """Three untrained small seeds a, b, c."""
    root = tmp_path_factory.mktemp("seeds")
    return {name: save_seed(small_model(i), root / name) for i, name in enumerate("abc")}


@pytest.fixture(scope="session")
def complete(tmp_path_factory) -> Run:
    """A run of three small seeds with all chapters' tables and its report; tests leave it as it is."""
    from explored import everything

    return everything(tmp_path_factory.mktemp("complete"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty Hub, and libraries with empty caches that ask it; nobody waits."""
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    nap = time.sleep
    monkeypatch.setattr("time.sleep", lambda seconds: nap(min(seconds, 0.001)))
    close_session()
    with LocalHub() as hub:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", hub.url)
        for module, name, value in (
            (constants, "ENDPOINT", hub.url),
            (constants, "HUGGINGFACE_CO_URL_TEMPLATE", template),
            (constants, "HF_HUB_CACHE", str(tmp_path / "cache")),
            (constants, "HF_HUB_OFFLINE", False),
            (datasets.config, "HF_ENDPOINT", hub.url),
            (datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets")),
            (datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules")),
        ):
            monkeypatch.setattr(module, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub
    close_session()


@pytest.fixture
def without_grouped_moments(monkeypatch):
    """Passes that sum nothing by group, which takes most of the time and memory where labels are not the subject."""
    monkeypatch.setattr("lib.collect.preflight.run_groupings", lambda run: {})


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """make_run(seeds, **parameters): a run that writes below the test's temporary folder."""
    monkeypatch.setattr("lib.base.params.OUTPUTS", tmp_path / "outputs")

    def make(seeds: dict[str, Path], **changes) -> Run:
        values = dict(
            run="test",
            seeds={name: str(path) for name, path in seeds.items()},
            reference=sorted(seeds)[0],
            text=str(TEXT),
            context=256,
            token_budget=20 * 256,
            random_seed=0,
            rotations=2,
            threshold=0.5,
            precision="fp64",
            device="cpu",
        )
        return Run(Params(**(values | changes)))

    return make


def permuted_tokenizer(seed: Path, folder: Path) -> Path:
    """A copy of a seed whose tokeniser has two ids exchanged."""
    shutil.copytree(seed, folder)
    described = json.loads((folder / "tokenizer.json").read_text())
    ids = described["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (folder / "tokenizer.json").write_text(json.dumps(described))
    return folder
