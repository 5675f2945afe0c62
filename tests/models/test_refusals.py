"""What configs, file names and headers of weights show is refused alike by the run and by its plan, in one sentence.

No text is read before, and nothing is written.
"""

import ast
import json
import shutil

import pytest
import torch
from conftest import save_seed, small_model
from safetensors.torch import load_file, save_file
from small_models import save_as_pickle
from transformers import AutoConfig

from lib.base.errors import InputError
from lib.base.params import ROOT
from lib.collect import forecast
from lib.collect.passes import collect
from lib.text.tokens import shared_tokenizer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"


def other_config(kind: str, **flags):
    def change(folder):
        AutoConfig.for_model(kind, **flags).save_pretrained(folder)

    return change


def changed_config(**flags):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | flags))

    return change


def changed_weights(make):
    def change(folder):
        path = folder / "model.safetensors"
        save_file(make(load_file(path)), path, {"format": "pt"})

    return change


def pointer(file: str):
    return lambda folder: (folder / file).write_bytes(POINTER)


def with_other(key: str, tensor):
    return changed_weights(lambda weights: weights | {key: tensor})


def pickled(make):
    def change(folder):
        (folder / "model.safetensors").unlink()
        path = save_as_pickle(small_model(0), folder) / "pytorch_model.bin"
        torch.save(make(torch.load(path)), path)

    return change


def without_tokeniser(folder):
    (folder / "tokenizer.json").unlink()


def with_adapter(folder):
    (folder / "adapter_config.json").write_text("{}")


def prefixed(prefix: str):
    return lambda weights: {prefix + key: tensor for key, tensor in weights.items()}


LATE = {"transformer.h.2.ln_1.weight": torch.ones(32)}
QUANTISED = dict(quant_method="gptq", bits=4, group_size=128)
REFUSED = {
    **{
        kind: (other_config(kind), f"the architecture {kind} is not supported; supported are .*gpt2")
        for kind in ("bloom", "mpt", "mamba", "mamba2", "gpt_neo", "gptj", "opt", "phi", "mixtral", "gemma2", "bert")
    },
    "t5": (other_config("t5"), "the architecture t5 is not supported"),
    "a model with vision": (
        other_config("gemma3"),
        "the architecture gemma3, whose text model is a part of a larger one",
    ),
    "gptq": (changed_config(quantization_config=QUANTISED), r"weights are quantised \(gptq"),
    "awq": (changed_config(quantization_config={"quant_method": "awq", "bits": 4}), r"weights are quantised \(awq"),
    "bitsandbytes": (
        changed_config(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        r"weights are quantised \(bitsandbytes",
    ),
    "unknown quantisation": (changed_config(quantization_config={"bits": 3}), "weights are quantised"),
    "integers": (
        with_other("transformer.h.0.mlp.c_fc.weight", torch.ones(32, 48, dtype=torch.int8)),
        r"'transformer.h.0.mlp.c_fc.weight' in .* holds integers \(I8\)",
    ),
    "code of its own": (
        changed_config(model_type="mine", auto_map={"AutoConfig": "mine.Config"}),
        "needs code of its own .* which is never run",
    ),
    "unknown architecture": (changed_config(model_type="mine"), "config.json cannot be read"),
    "no architecture": (changed_config(model_type=None), "config.json cannot be read"),
    "a word for a number": (changed_config(n_layer="two"), "config.json cannot be read"),
    "a list as config": (lambda folder: (folder / "config.json").write_text("[]"), "config.json cannot be read"),
    "heads that do not divide the width": (changed_config(n_head=5), "no model can be made of .*config.json"),
    "unknown activation": (changed_config(activation_function="geluu"), "no model can be made of .*geluu"),
    "no layers": (changed_config(n_layer=0), "GPT2LMHeadModel is not supported"),
    "negative width": (changed_config(n_embd=-32), "no model can be made of"),
    "context": (changed_config(n_positions=128), "context is 256 but seed 'b' has at most 128 positions"),
    "no tokeniser": (without_tokeniser, "has no tokeniser"),
    "adapter": (with_adapter, "has an adapter beside its weights"),
    **{
        f"pointer {file}": (pointer(file), f"{file} is only git-lfs's pointer")
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    },
    "shape": (
        with_other("transformer.h.1.mlp.c_fc.bias", torch.ones(40)),
        r"have \(40,\) as the shape of 'transformer.h.1.mlp.c_fc.bias', but its config.json asks for \(48,\)",
    ),
    "vocabulary": (changed_config(vocab_size=9000), "as the shape of 'transformer.wte.weight'"),
    "module.": (changed_weights(prefixed("module.")), "have names that begin with 'module.'"),
    "_orig_mod.": (changed_weights(prefixed("_orig_mod.")), "have names that begin with '_orig_mod.'"),
    "module. in pytorch's format": (pickled(prefixed("module.")), "have names that begin with 'module.'"),
    "more layers": (changed_weights(lambda weights: weights | LATE), "hold 3 layers, but its config.json asks for 2"),
    "fewer layers": (changed_config(n_layer=3), r"lack 'transformer.h.2"),
    "cut short": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100]),
        "truncated or corrupt",
    ),
}


@pytest.fixture
def folder(tmp_path, seed_folders):
    return shutil.copytree(seed_folders["b"], tmp_path / "b")


def refusals(run) -> list[str]:
    """What the run and its plan say."""
    said = []
    for call in (lambda: collect(run), lambda: forecast.lines(run.params)):
        with pytest.raises(InputError) as error:
            call()
        said.append(str(error.value))
    return said


@pytest.mark.parametrize("change, words", REFUSED.values(), ids=REFUSED)
def test_run_and_plan_refuse_alike_before_any_text_is_read(make_run, seed_folders, folder, monkeypatch, change, words):
    change(folder)
    run = make_run({"a": seed_folders["a"], "b": folder})
    monkeypatch.setattr(type(run), "text", property(lambda _: pytest.fail("the text is read")))
    first, second = refusals(run)
    assert first == second and "\n" not in first and first.startswith(("seed 'b': ", "context is 256"))
    with pytest.raises(InputError, match=words):
        raise InputError(first)
    assert not list(run.folder.glob("stats/*"))


@pytest.mark.parametrize("model", ["GPT2Model's own names", "a mask of integers", "float16"])
def test_files_that_only_look_odd_are_accepted(make_run, seed_folders, folder, model):
    change = {
        "GPT2Model's own names": lambda weights: {
            key.removeprefix("transformer."): tensor for key, tensor in weights.items() if key != "lm_head.weight"
        },
        "a mask of integers": lambda weights: (
            weights | {"transformer.h.0.attn.bias": torch.ones(1, 4, dtype=torch.uint8)}
        ),
        "float16": lambda weights: {key: tensor.half() for key, tensor in weights.items()},
    }[model]
    changed_weights(change)(folder)
    assert forecast.lines(make_run({"a": seed_folders["a"], "b": folder}).params)


@pytest.mark.parametrize("source", ["data/seeds/f", "{tmp}/nowhere", "./nowhere", "nowhere/at/all"])
def test_a_mistyped_folder_is_a_folder_that_is_not_there(make_run, seed_folders, tmp_path, source):
    run = make_run({"a": seed_folders["a"], "b": source.format(tmp=tmp_path)})
    for said in refusals(run):
        assert said.startswith("seed 'b': there is no folder ")
        assert ("data/seeds has a, b, c, d and e" in said) == (source == "data/seeds/f")


def test_a_plan_and_a_run_say_that_interventions_are_left_out(make_run, tmp_path, seed_folders, capsys):
    from small_models import llama_model

    other = save_seed(llama_model(1), tmp_path / "llama")
    run = make_run({"a": seed_folders["a"], "b": other})
    said = (
        "interventions need models of the architectures gpt2 and gpt_neox, but seed 'b' is llama, with a gated MLP; "
        "chapter 06 leaves them out."
    )
    assert said in forecast.lines(run.params)
    from lib.chapters.interventions.tables import unsupported
    from lib.collect.preflight import Preflight

    Preflight(run, grouped=False).check()
    assert f"note: {said}" in capsys.readouterr().err and unsupported(run) == said


AUTO = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")


def test_no_auto_class_may_run_code_of_a_models_folder():
    calls = 0
    for path in [path for room in ("lib", "bench") for path in (ROOT / room).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            if not (isinstance(called, ast.Attribute) and getattr(called.value, "id", None) in AUTO):
                continue
            trusted = next((one.value for one in node.keywords if one.arg == "trust_remote_code"), None)
            assert isinstance(trusted, ast.Constant) and trusted.value is False, f"{path}:{node.lineno}"
            calls += 1
    assert calls >= 7


def test_code_of_a_models_folder_is_not_run_where_its_tokeniser_is_loaded(make_run, seed_folders, folder, tmp_path):
    ran = tmp_path / "ran"
    (folder / "mine.py").write_text(f"open({str(ran)!r}, 'w')\nclass Tokenizer: pass\n")
    path = folder / "tokenizer_config.json"
    own = {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": ["mine.Tokenizer", None]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    changed_config(auto_map={"AutoConfig": "mine.Config"})(folder)
    try:
        shared_tokenizer(make_run({"a": seed_folders["a"], "b": folder}).params)
    except InputError:
        pass
    assert not ran.exists()
