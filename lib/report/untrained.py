"""The ledger of untrained models: a claim that holds for them too says nothing about training.

`make untrained` makes one randomly initialised model for each seed of a run, from the seed's own config, and the same
report on them from fewer tokens. What is kept is the ledger, in data/untrained, for every run of the same shape.
"""

import argparse
import shutil
import sys
from pathlib import Path

import pandas as pd

from lib.base import params as parameters
from lib.base.errors import InputError, exit_on_input_error
from lib.base.hub import CONFIG_AND_TOKENIZER, seed_config, seed_source
from lib.base.params import Params, read_params, write_params
from lib.base.tensors import write_table

FOLDER = Path("data") / "untrained"
TOKENS = 32_768  # positions of text: with the shipped shape about four minutes on two free cores
ROTATIONS = 2
KEPT = ("name", "value", "low", "high", "here", "verdict", "p_value", "p_corrected", "agree", "seeds", "by_seed")


def shape_of(params: Params) -> str | None:
    """The shape of a run's models, `gpt2-6x1024-256-8192`: architecture, layers × neurons, width, vocabulary.

    None where the seeds differ in it, or a config cannot be read.
    """
    from lib.collect.planner import seed_shapes
    from lib.models.trunk import read_config

    try:
        shapes = seed_shapes(params)
        kinds = {read_config(name, Path(seed_config(params, name))).model_type for name in params.seeds}
    except InputError:
        return None
    found = {(one.layers, one.neurons, one.width, one.vocabulary) for one in shapes.values()}
    if len(found) > 1 or len(kinds) > 1:
        return None
    layers, neurons, width, vocabulary = found.pop()
    return f"{kinds.pop()}-{layers}x{neurons}-{width}-{vocabulary}"


def table_path(params: Params) -> Path | None:
    """Where the table of untrained models of a run's shape is, whether it exists or not; None for mixed shapes."""
    shape = shape_of(params)
    return None if shape is None else parameters.ROOT / FOLDER / f"{shape}.parquet"


def untrained_rows(params: Params) -> pd.DataFrame | None:
    """The ledger of untrained models of a run's shape, with name as index; None where nobody has made it."""
    path = table_path(params)
    return pd.read_parquet(path).set_index("name") if path is not None and path.is_file() else None


def make_models(params: Params, folder: Path) -> dict[str, str]:
    """Writes a randomly initialised model for each seed, with the seed's config and tokeniser; seed → its folder.

    The initialisation is the one that transformers has for the config; the number of the seed among the seeds draws it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folders = {}
    for number, name in enumerate(sorted(params.seeds)):
        source, into = Path(seed_source(params, name)), folder / name
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        model.save_pretrained(into)
        for file in set(CONFIG_AND_TOKENIZER) - {"config.json", "generation_config.json"}:
            if (source / file).is_file():
                shutil.copyfile(source / file, into / file)
        folders[name] = str(into)
    return folders


def prepare(params: Params, tokens: int = TOKENS) -> Path:
    """Makes the models of a run's shape; the parameter file of the report on them, outputs/untrained-<run>/run.yaml."""
    if table_path(params) is None:
        raise InputError("the run's seeds have different shapes; untrained models need one shape, so name another run.")
    name = f"untrained-{params.run}"
    made = params.model_copy(update={"run": name})
    folders = make_models(params, made.folder / "seeds")
    changed = {"run": name, "seeds": folders, "compare": "all", "rotations": min(ROTATIONS, params.rotations)}
    changed |= {"token_budget": max(params.context, min(tokens, params.token_budget)), "products": params.products_used}
    values = params.model_dump(exclude_none=True, exclude={"revision"}) | changed
    write_params(Params(**values), made.folder / "run.yaml")
    return made.folder / "run.yaml"


def keep(params: Params) -> Path:
    """Writes what is kept of the ledger of outputs/untrained-<run>; `params` are the run's own."""
    made = params.model_copy(update={"run": f"untrained-{params.run}"})
    table = pd.read_parquet(made.folder / "tables" / "ledger.parquet")
    path, budget = table_path(params), read_params(made.folder / "params.yaml").token_budget
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, table[list(KEPT)].assign(shape=path.stem, tokens=budget))
    return path


@exit_on_input_error
def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 on success, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m lib.report.untrained", description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("prepare", "keep"))
    parser.add_argument("params", help="a parameter file; empty for the run's own")
    parser.add_argument("--run", help="the run's name (default: the file's)")
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"positions of text (default {TOKENS:,})")
    given = parser.parse_args(arguments)
    params = read_params(given.params, run=given.run)
    path = prepare(params, given.tokens) if given.step == "prepare" else keep(params)
    print(path if given.step == "prepare" else f"Untrained models: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
