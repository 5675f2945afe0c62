"""`make bench`: measures everything, prints one table, writes bench/<machine>.json, which the report's page shows."""

import argparse
import sys
import time
from collections.abc import Iterator

from bench import machine, table
from bench.errors import errors
from bench.forward import forward_rates
from bench.passing import at_once, overhead
from bench.scaling import SEEDS, scaling
from bench.statistics import costs
from bench.whole import measured
from lib.base.files import write_json
from lib.base.params import ROOT, Params

TOKENS = (300_000, 1_000_000)  # of the comparison
PUBLISHED_TOKENS = 8192  # of them the published way reads so many (its pass is linear in tokens)
ERRORS_TOKENS = 204_800  # on which the sketch is held against exact sums, ten minutes
SCALING_TOKENS = 65_536
AT_ONCE_TOKENS = 131_072
OVERHEAD_TOKENS = 131_072
FORWARD_BLOCKS = 32
ROUNDS = 5
ROWS = Params.model_fields["sketch_rows"].default


def whole(tokens: tuple[int, ...], published_tokens: int) -> dict:
    """All ways in turn: published, sketch and exact, and one pair of the published again on twice the tokens."""
    same, _ = measured("ours", SEEDS, published_tokens, "auto")
    theirs, first = measured("published", SEEDS, published_tokens, "fp32")
    ours = [measured("ours", SEEDS, number, "auto", "sketch")[1] for number in tokens]
    _, exact = measured("ours", SEEDS, tokens[0], "auto", "exact")
    _, twice = measured("published", SEEDS[:2], 2 * published_tokens, "fp32")
    once = {"tokens": first["tokens"], "pass_seconds": sum(first["run_seconds"][:2])}
    difference = {kind: (same[kind] - theirs[kind]).abs() for kind in ("corr", "baseline")}
    return {
        "ours": ours,
        "exact": exact,
        "published": first,
        "published_pair": [once, twice],
        "difference": {kind: float(one.max()) for kind, one in difference.items()}
        | {f"{kind}_median": float(one.median()) for kind, one in difference.items()},
    }


def measure(device, parts: list[str], given: argparse.Namespace) -> Iterator[tuple[str, object]]:
    """Each part asked for as it is done: name and measurements."""
    work = {
        "whole": lambda: whole(tuple(given.tokens), given.published_tokens),
        "overhead": lambda: overhead(OVERHEAD_TOKENS, ROUNDS),
        "costs": lambda: costs(device, "bf16", ROWS, ROUNDS),
        "errors": lambda: errors(given.errors_tokens, SEEDS),
        "forward": lambda: forward_rates(device, FORWARD_BLOCKS, ROUNDS),
        "at_once": lambda: at_once(AT_ONCE_TOKENS),
        "scaling": lambda: {
            "tokens": SCALING_TOKENS,
            "seconds": scaling(SCALING_TOKENS, "auto", machine.description(device)["cores"]),
        },
    }
    if device.type == "cuda":
        work.pop("scaling")  # processes share out GPUs; one has nothing to share
    for part in (part for part in work if part in parts):
        started = time.monotonic()
        yield part, work[part]()
        print(f"{part}: {time.monotonic() - started:.0f} s", file=sys.stderr)


def main() -> None:
    """Command line."""
    every = ("whole", "overhead", "costs", "errors", "forward", "at_once", "scaling")
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--published-tokens", type=int, default=PUBLISHED_TOKENS)
    parser.add_argument("--errors-tokens", type=int, default=ERRORS_TOKENS)
    parser.add_argument(
        "--only", nargs="+", choices=every, default=every, help="measure these parts again, keep the others as they are"
    )
    given = parser.parse_args()
    device = machine.this_device()
    path = ROOT / "bench" / f"{machine.file_stem(device)}.json"
    record = table.Record.read(path, machine.description(device))
    for part, measurements in measure(device, given.only, given):
        record.add(part, measurements)
        write_json(path, record.content())  # after each part, so that a run that is stopped keeps what it measured
    print(table.text(record.content()))


if __name__ == "__main__":
    main()
