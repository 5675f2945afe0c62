"""`make bench`: measures everything, prints one table, writes bench/<machine>.json, which the report's page shows."""

import argparse
import sys
import time

from bench import machine, table
from bench.forward import forward_rates
from bench.precision import errors_of_precisions
from bench.scaling import SEEDS, scaling
from bench.statistics import SHAPES, compare_at, share_of_peak
from bench.whole import measured
from lib.kernels.covariance import fastest_precision
from lib.params import ROOT
from lib.store import write_json

TOKENS = 300_000  # of the comparison
PUBLISHED_TOKENS = 8192  # of them the published way reads so many (its pass is linear in tokens)
PRECISION_TOKENS = 49_152
SCALING_TOKENS = 32_768
FORWARD_BLOCKS = 32
ROUNDS = 3


def whole(device, tokens: int, published_tokens: int) -> dict:
    """Both ways in turn: published, ours, published."""
    precision = fastest_precision(device, tokens)
    same, _ = measured("ours", SEEDS, published_tokens, precision)  # also compiles
    theirs, first = measured("published", SEEDS, published_tokens, precision)
    _, ours = measured("ours", SEEDS, tokens, precision)
    again = [] if published_tokens == tokens else [measured("published", SEEDS, published_tokens, precision)[1]]
    pair = [measured("published", SEEDS[:2], count * PUBLISHED_TOKENS, precision)[1] for count in (1, 2)]
    difference = {kind: (same[kind] - theirs[kind]).abs() for kind in ("corr", "baseline")}
    return {
        "ours": ours,
        "published": [first, *again],
        "published_pair": pair,
        "difference": {kind: float(one.max()) for kind, one in difference.items()}
        | {f"{kind}_median": float(one.median()) for kind, one in difference.items()},
    }


def measure(device, parts: list[str], given: argparse.Namespace) -> dict:
    """All parts asked for, by name."""
    default = fastest_precision(device, given.tokens)
    kernels = dict.fromkeys((default, "bf16"))  # the bars are in bf16
    work = {
        "whole": lambda: whole(device, given.tokens, given.published_tokens),
        "statistics": lambda: {
            "tokens": given.tokens,
            "sizes": [compare_at(*shape, device, default, 1 if shape is SHAPES[-1] else ROUNDS) for shape in SHAPES],
        },
        "peak": lambda: [share_of_peak(*SHAPES[1], device, precision, ROUNDS) for precision in kernels],
        "forward": lambda: forward_rates(device, FORWARD_BLOCKS, ROUNDS),
        "precision": lambda: errors_of_precisions(device, given.precision_tokens, ("int8", "bf16", "fp32")),
        "scaling": lambda: {
            "tokens": SCALING_TOKENS,
            "seconds": scaling(SCALING_TOKENS, default, machine.description(device)["cores"]),
        },
    }
    if device.type == "cuda":
        work.pop("scaling")  # processes share out GPUs; one has nothing to share
    found = {}
    for part in (part for part in work if part in parts):
        started = time.monotonic()
        found[part] = work[part]()
        print(f"{part}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return found


def main() -> None:
    """Command line."""
    every = ("whole", "statistics", "peak", "forward", "precision", "scaling")
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--published-tokens", type=int, default=PUBLISHED_TOKENS)
    parser.add_argument("--precision-tokens", type=int, default=PRECISION_TOKENS)
    parser.add_argument("--only", nargs="+", choices=every, default=every, help="print these parts, write nothing")
    given = parser.parse_args()
    device = machine.this_device()
    found = measure(device, given.only, given)
    record = {"machine": machine.description(device), "rows": table.rows(found), "measured": found}
    print(table.text(record))
    if set(given.only) == set(every):
        write_json(ROOT / "bench" / f"{machine.file_stem(device)}.json", record)


if __name__ == "__main__":
    main()
