"""`make bench`: measures everything, prints one table, writes bench/<machine>.json, which the report's page shows."""

import argparse
import sys
import time
from collections.abc import Iterator

from bench import machine, table
from bench.forward import forward_rates
from bench.precision import errors_of_precisions
from bench.scaling import SEEDS, scaling
from bench.statistics import SHAPES, compare_at, elementwise, share_of_peak
from bench.whole import measured
from lib.base.files import write_json
from lib.base.params import ROOT
from lib.collect.planner import BATCH
from lib.kernels.covariance import fastest_precision

TOKENS = 300_000  # of the comparison
PUBLISHED_TOKENS = 8192  # of them the published way reads so many (its pass is linear in tokens)
PRECISION_TOKENS = 51_200  # about the fewest at which int8 is the default
SCALING_TOKENS = 32_768
FORWARD_BATCHES = 4
ROUNDS = 3


def whole(device, tokens: int, published_tokens: int) -> dict:
    """Both ways in turn: published, ours, and one pair of the published again on twice the tokens."""
    precision = fastest_precision(device, tokens)
    same, _ = measured("ours", SEEDS, published_tokens, precision)  # also compiles
    theirs, first = measured("published", SEEDS, published_tokens, precision)
    _, ours = measured("ours", SEEDS, tokens, precision)
    _, twice = measured("published", SEEDS[:2], 2 * published_tokens, precision)
    once = {"tokens": first["tokens"], "pass_seconds": sum(first["run_seconds"][:2])}
    difference = {kind: (same[kind] - theirs[kind]).abs() for kind in ("corr", "baseline")}
    return {
        "ours": ours,
        "published": first,
        "published_pair": [once, twice],
        "difference": {kind: float(one.max()) for kind, one in difference.items()}
        | {f"{kind}_median": float(one.median()) for kind, one in difference.items()},
    }


def measure(device, parts: list[str], given: argparse.Namespace) -> Iterator[tuple[str, object]]:
    """Each part asked for as it is done: name and measurements."""
    default = fastest_precision(device, given.tokens)
    kernels = dict.fromkeys((default, "bf16"))  # the bars are in bf16
    work = {
        "whole": lambda: whole(device, given.tokens, given.published_tokens),
        "statistics": lambda: {
            "tokens": given.tokens,
            "sizes": [
                compare_at(*shape, device, default, given.tokens, 1 if shape is SHAPES[-1] else ROUNDS)
                for shape in SHAPES
            ],
        },
        "peak": lambda: [share_of_peak(*SHAPES[1], device, precision, given.tokens, ROUNDS) for precision in kernels],
        "elementwise": lambda: elementwise(device, default, ROUNDS),
        "forward": lambda: forward_rates(device, FORWARD_BATCHES * BATCH[device.type], ROUNDS),
        "precision": lambda: errors_of_precisions(device, given.precision_tokens, ("int8", "bf16", "fp32")),
        "scaling": lambda: {
            "tokens": SCALING_TOKENS,
            "seconds": scaling(SCALING_TOKENS, default, machine.description(device)["cores"]),
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
    every = ("whole", "statistics", "peak", "elementwise", "forward", "precision", "scaling")
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--published-tokens", type=int, default=PUBLISHED_TOKENS)
    parser.add_argument("--precision-tokens", type=int, default=PRECISION_TOKENS)
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
