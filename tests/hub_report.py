"""A whole `make report` of a study against a Hub on 127.0.0.1, which holds tiny stand-ins under the real names.

    python tests/hub_report.py gpt2-small            # or another study, or llama (a gated MLP)
    python tests/hub_report.py gpt2-small --kill     # the same, killed with -9 at four moments on the way
    python tests/hub_report.py sizes                 # chapters 01 to 03 of the five PolyPythias, then make compare

The report is made in a copy of the repository in a temporary folder (`--folder`), with caches of its own. What is
checked: all chapters and the front page are there, a second `make report` makes no request, and after kills
the tables equal those of a run that nobody disturbed.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from local_hub import LocalHub  # noqa: E402
from small_models import SIZES, save_small_model  # noqa: E402

from lib.base.params import Params, read_params  # noqa: E402
from lib.text.tokenise import vocabulary  # noqa: E402

SIZED = tuple(f"polypythias-{size}" for size in SIZES)
# run: architecture of its stand-ins, and how much of their weights is a seed's own
STUDIES = {
    "gpt2-small": ("crfm", 0.15),
    "gpt2-medium": ("crfm", 1.0),
    "pythia-160m": ("neox", 0.15),
    "llama": ("llama", 0.15),
    "gpt2-small-in-medium": ("crfm", 0.15),
    "gpt2-medium-in-small": ("crfm", 0.15),
    **{name: (f"neox-{size}", 0.15) for name, size in zip(SIZED, SIZES, strict=True)},
}
CHAPTERS = "*.ipynb"  # names of the notebooks that a report has
EARLY = "0[123]_*.ipynb"
COPIED = ("lib", "notebooks", "params", "bench", "tests")
LINKED = (".venv", "data", "CITATION.cff", "Makefile", "requirements.txt", "constraints.txt")
TOKENS = 20480


class Workplace:
    """A copy of the repository whose `make` knows no other Hub than the local one, and no other cache than its own."""

    def __init__(self, folder: Path, hub: LocalHub):
        self.folder = folder
        for name in COPIED:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in LINKED:
            (folder / name).symlink_to(ROOT / name)
        caches = {
            "HF_HOME": folder / "hf",
            "HF_HUB_CACHE": folder / "hf" / "hub",
            "HF_DATASETS_CACHE": folder / "hf" / "datasets",
        }
        self.environment = os.environ | {name: str(path) for name, path in caches.items()}
        self.environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}

    def start(self, *arguments: str) -> subprocess.Popen:
        """`make` with arguments, as a process group; what it says is added to log.txt."""
        with open(self.folder / "log.txt", "a", encoding="utf-8") as log:
            return subprocess.Popen(
                ["make", *arguments],
                cwd=self.folder,
                env=self.environment,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def make(self, *arguments: str) -> None:
        """`make` with arguments to its end; stops with what it said last if it fails."""
        if self.start(*arguments).wait():
            sys.exit(f"make {' '.join(arguments)} failed:\n" + (self.folder / "log.txt").read_text()[-4000:])

    def kill_at(self, moment: Callable[[], bool], *arguments: str) -> None:
        """`make` with arguments, killed with -9, and everything it started, as soon as the moment has come."""
        process = self.start(*arguments)
        while not moment():
            if process.poll() is not None:
                sys.exit("make ended before it could be killed:\n" + (self.folder / "log.txt").read_text()[-4000:])
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def tables(self, run: str) -> dict[str, pd.DataFrame]:
        """Every table of a run by its name."""
        return {
            path.stem: pd.read_parquet(path)
            for path in sorted((self.folder / "outputs" / run / "tables").glob("*.parquet"))
        }


def pile(params: Params, tokens: int) -> dict[str, bytes]:
    """A dataset like monology/pile-uncopyrighted, which declares no splits, made of the shipped text."""
    from transformers import AutoTokenizer

    from lib.text.blocks import read_text

    text, tokenizer = (
        read_text(ROOT / "data" / "tokens.safetensors"),
        AutoTokenizer.from_pretrained(ROOT / "data" / "tokenizer"),
    )
    bos = vocabulary(tokenizer).bos_id
    records = []
    for block in range(2 * tokens // text.context):
        for words in tokenizer.decode(text.tokens[block].tolist()).split(tokenizer.decode([bos])):
            if words.strip():
                records.append({"text": words, "meta": {"pile_set_name": text.domains[text.domain[block]]}})
    lines = "\n".join(map(json.dumps, records)).encode()
    packed = pyarrow.Codec("zstd").compress(lines, asbytes=True)
    return {
        "README.md": b"---\nlicense: other\n---\n",
        "train/00.jsonl.zst": b"",
        "val.jsonl.zst": b"",
        params.text.data_files: packed,
        "documents.jsonl": lines,
    }


def parameters(study: str) -> tuple[Params, bool]:
    """The parameters of a study, and whether a file of that name ships; llama has Pythia's with other names."""
    if (ROOT / "params" / f"{study}.yaml").is_file():
        return read_params(ROOT / "params" / f"{study}.yaml"), True
    pythia = read_params(ROOT / "params" / "pythia-160m.yaml").model_dump(exclude_none=True)
    seeds = {name: f"stand-in/{study}-{name}" for name in pythia["seeds"]}
    return Params(**pythia | {"run": study, "seeds": seeds}), False


def prepare(
    study: str, folder: Path, hub: LocalHub, tokens: int, place: Workplace | None = None
) -> tuple[Workplace, Params]:
    """A workplace, unless it is given, and the study's models and text on the Hub."""
    params, ships = parameters(study)
    architecture, own = STUDIES[study]
    for index, (name, source) in enumerate(params.seeds.items()):
        kind = "crfm-medium" if "-in-" in study and "gpt2-medium" in source else architecture
        stored = save_small_model(kind, index, folder / "served" / study / name, own)
        hub.add("models", source, stored, params.revision_of(name))
    dataset = pile(params, tokens)
    lines = dataset.pop("documents.jsonl")
    hub.add("datasets", params.text.dataset, dataset)
    place = place or Workplace(folder / "copy", hub)
    (place.folder / "documents.jsonl").write_bytes(lines)
    if not ships:
        described = params.model_dump(exclude_none=True)
        (place.folder / "params" / f"{study}.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    return place, params


def chosen(chapters: str) -> str:
    """What `make report` is told of the notebooks of this name."""
    return "CHAPTERS=" + " ".join(f"notebooks/{path.name}" for path in sorted((ROOT / "notebooks").glob(chapters)))


def check_report(place: Workplace, run: str, chapters: str) -> None:
    """Every chapter is there, executed and as a page."""
    out = place.folder / "outputs" / run
    for notebook in sorted((place.folder / "notebooks").glob(chapters)):
        executed = json.loads((out / "notebooks" / notebook.name).read_text())
        assert not any(o["output_type"] == "error" for c in executed["cells"] for o in c.get("outputs", ())), notebook
        assert (out / "report" / f"{notebook.stem}.html").stat().st_size > 10_000, notebook
    assert (out / "report" / "index.html").is_file()
    print(f"{run}: report finished, {out / 'report' / 'index.html'}", flush=True)


def kills(place: Workplace, hub: LocalHub, run: str) -> dict[str, Callable[[], bool]]:
    """Four moments in the order in which they come."""
    out, hf = place.folder / "outputs", place.folder / "hf"

    def tokenising() -> bool:
        folders = list((out / "cache" / "text").glob("*"))
        return any(not (folder / "tokens.safetensors").exists() for folder in folders)

    stats = out / run / "stats"
    return {
        "download": lambda: bool(list(hf.rglob("*.incomplete"))),
        "tokenising": tokenising,
        "the pass": lambda: (stats / "pilot.safetensors").exists() and not (stats / "done.json").exists(),
        "a notebook": lambda: (out / run / "unfinished" / "03_universality.ipynb").exists(),
    }


def sizes(folder: Path, tokens: int) -> None:
    """The study over sizes: five runs, each a second time without a request, and the page that reads them."""
    with LocalHub() as hub:
        place = None
        for run in SIZED:
            place, _ = prepare(run, folder, hub, tokens, place)
            made = "report", f"RUN={run}", f"TOKENS={tokens}", chosen(EARLY)
            place.make(*made)
            check_report(place, run, EARLY)
            hub.heal()
            place.make(*made)
            assert hub.requests == [], hub.requests
        place.make("compare", f"RUNS={' '.join(SIZED)}")
        assert hub.requests == [], hub.requests
    page = place.folder / "outputs" / SIZED[0] / "report" / "runs.html"
    assert "to the power" in page.read_text(encoding="utf-8")
    print(f"sizes: {page}; no second run and no comparison made a request", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=[*STUDIES, "sizes"])
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--folder", type=Path, help="an empty or new folder, which is kept")
    parser.add_argument("--chapters", default=CHAPTERS, help="the notebooks' names (default: all)")
    parser.add_argument("--kill", action="store_true", help="kill it on the way, and compare with an undisturbed run")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="hub-report-"))
    if options.study == "sizes":
        return sizes(folder, options.tokens)
    study, made = (
        options.study,
        ("report", f"RUN={options.study}", f"TOKENS={options.tokens}", chosen(options.chapters)),
    )
    with LocalHub() as hub:
        place, _ = prepare(study, folder, hub, options.tokens)
        if options.kill:
            hub.fail("slow", "/storage/", times=3)
            for name, moment in kills(place, hub, study).items():
                place.kill_at(moment, *made)
                print(f"{study}: killed during {name}", flush=True)
                hub.heal()
                if name == "download":
                    hub.fail("slow", "/storage/datasets", times=100)
        place.make(*made)
        check_report(place, study, options.chapters)
        hub.heal()
        place.make(*made)
        assert hub.requests == [], hub.requests
        print(f"{study}: a second `make report` made no request", flush=True)
        if options.kill:
            undisturbed = prepare(study, folder / "undisturbed", hub, options.tokens)[0]
            undisturbed.make(*made)
            ours, theirs = place.tables(study), undisturbed.tables(study)
            assert ours.keys() == theirs.keys()
            for name, table in theirs.items():
                pd.testing.assert_frame_equal(ours[name], table, check_exact=True, obj=name)
            print(f"{study}: {len(theirs)} tables equal those of a run that nobody disturbed", flush=True)


if __name__ == "__main__":
    main()
