"""Measurements as a table: what was measured, the number with its unit, and the bar it is held against."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One line of the table; `what` and `bar` are the same on every machine."""

    group: str
    what: str
    measured: str
    bar: str = ""


def rows(found: dict) -> list[dict]:
    """The table's rows, as dictionaries, of whichever parts were measured."""
    makers = {
        "whole": _whole,
        "statistics": _statistics,
        "peak": _peak,
        "elementwise": _elementwise,
        "forward": _forward,
        "precision": _precision,
        "scaling": _scaling,
    }
    return [asdict(row) for part, make in makers.items() if part in found for row in make(found[part])]


class Record:
    """What was measured on one machine, part by part, each with the date and commit that it was measured at."""

    def __init__(self, machine: dict, parts: dict[str, dict]):
        self.machine, self.parts = machine, parts

    @classmethod
    def read(cls, path: Path, machine: dict) -> "Record":
        """The parts of an earlier file of the same machine, and this machine as it is now."""
        stored = json.loads(path.read_text()) if path.exists() else {}
        same = all(stored.get("machine", {}).get(key) == machine[key] for key in ("device", "cores", "torch"))
        return cls(machine, stored["parts"] if same else {})

    def add(self, part: str, measured: dict | list) -> None:
        """Takes over a part that was just measured."""
        self.parts[part] = {"date": self.machine["date"], "commit": self.machine["commit"], "measured": measured}

    def content(self) -> dict:
        """As it is written: machine, table rows, parts."""
        commits = sorted({part["commit"] or "unknown" for part in self.parts.values()})
        dates = sorted(part["date"][:10] for part in self.parts.values())
        span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
        machine = self.machine | {"date": span, "commit": ", ".join(commits)}
        return {
            "machine": machine,
            "rows": rows({name: part["measured"] for name, part in self.parts.items()}),
            "parts": self.parts,
        }


def at_tokens(record: dict, tokens: int) -> float:
    """Seconds that a way measured on fewer tokens takes on `tokens`: what it does once, and its pass in proportion."""
    return record["fixed_seconds"] + record["pass_seconds"] * tokens / record["tokens"]


def _whole(found: dict) -> list[Row]:
    ours, published, tokens = found["ours"], found["published"], found["ours"]["tokens"]
    theirs = at_tokens(published, tokens)
    once, twice = found["published_pair"]
    rest = ours["peak_bytes"] - ours["model_bytes"] - ours["accumulator_bytes"]
    group = "From seeds and text to results, forward passes included"
    was = f"measured on {published['tokens']:,} tokens, its pass in proportion"
    how = "measured" if published["tokens"] == tokens else was
    return [
        Row(
            group,
            "ours against the published algorithm: reference against four shipped seeds",
            f"{theirs / ours['seconds']:.1f} times as fast on {tokens:,} tokens",
            "8 times, aim 15",
        ),
        Row(group, "published algorithm", f"{_time(theirs)} ({how}), {tokens / theirs:,.0f} tokens/s"),
        Row(
            group,
            "ours",
            f"{_time(ours['seconds'])} (measured, {ours['precision']}), {tokens / ours['seconds']:,.0f} "
            f"tokens/s; of it {_time(ours['fixed_seconds'])} loading, pilot and algebra",
        ),
        Row(
            group,
            "is the published pass linear in tokens? seconds a thousand tokens, one pair (the first includes start-up)",
            f"{_per_thousand(once)} on {once['tokens']:,} tokens, {_per_thousand(twice)} on {twice['tokens']:,}",
        ),
        Row(
            group,
            "largest difference of max correlation and of baseline, same tokens and rotations",
            f"{found['difference']['corr']:.1e} and {found['difference']['baseline']:.1e} on "
            f"{published['tokens']:,} tokens (median {found['difference']['corr_median']:.1e} and "
            f"{found['difference']['baseline_median']:.1e})",
        ),
        Row(
            group,
            "ours: peak memory beyond models and accumulators",
            f"{rest / 1e9:.2f} GB, of which {ours['imports_bytes'] / 1e9:.2f} GB the imported packages "
            f"(peak {ours['peak_bytes'] / 1e9:.2f} GB, accumulators {ours['accumulator_bytes'] / 1e9:.2f} GB, models "
            f"{ours['model_bytes'] / 1e9:.2f} GB)",
            "at most 1.5 GB",
        ),
        Row(group, "published algorithm: peak memory, one pair at a time", f"{published['peak_bytes'] / 1e9:.2f} GB"),
    ]


def _per_thousand(record: dict) -> str:
    return f"{1000 * record['pass_seconds'] / record['tokens']:.2f} s"


def _statistics(found: dict) -> list[Row]:
    group, tokens, made = "Statistics only, activations given, one pair of seeds with its baseline", found["tokens"], []
    for one in found["sizes"]:
        name, (published, ours) = (
            f"N = {one['neurons']:,}",
            (one[f"{way}_seconds_at_end"] + tokens * one[f"{way}_seconds_per_token"] for way in ("published", "ours")),
        )
        made += [
            Row(
                group,
                f"{name}: ours against the published algorithm",
                f"{published / ours:.1f} times as fast on {tokens:,} tokens, in {one['precision']}",
                "8 times, aim 14" if one["neurons"] >= 6144 else "",
            ),
            Row(
                group,
                f"{name}: stream of activations, then the algebra at the end",
                f"published {1 / one['published_seconds_per_token']:,.0f} tokens/s, "
                f"{one['published_seconds_at_end']:.1f} s; "
                f"ours {1 / one['ours_seconds_per_token']:,.0f} tokens/s, {one['ours_seconds_at_end']:.1f} s",
            ),
            Row(
                group,
                f"{name}: largest difference of results after a few thousand tokens",
                f"{one['largest_difference']:.1e}",
            ),
        ]
    return made


def _peak(found: list[dict]) -> list[Row]:
    group = "Covariance kernel, operands prepared included, against the peak of the same product"
    return [
        Row(
            group,
            f"share of the {one['precision']} GEMM peak at N = {one['neurons']:,}",
            f"{one['rate'] / one['peak']:.0%}: {_rate(one['rate'])} of {_rate(one['peak'])}",
            "70 %, aim 85 %",
        )
        for one in found
    ]


def _rate(operations: float) -> str:
    return f"{operations / 1e12:.2f} TFLOP/s" if operations >= 1e12 else f"{operations / 1e9:.0f} GFLOP/s"


def _elementwise(found: dict[str, float]) -> list[Row]:
    group = "Sums and operands of one layer's activations, which surround the products"
    names = {"plain": "the expression as it stands", "compiled": "by torch.compile", "native": "by a loop of our own"}
    return [
        Row(
            group,
            names[key],
            f"{1e9 * taken:.2f} ns a value" + f", {found['plain'] / taken:.1f} times as fast" * (key != "plain"),
        )
        for key, taken in found.items()
    ]


def _forward(found: dict) -> list[Row]:
    names = {
        "plain": "plain transformers model, fp32, no logits",
        "plain_with_logits": "plain transformers model, fp32, with logits",
        "bridge": "TransformerLens Bridge, fp32, with both activations cached",
        "trunk_fp32": "our trunk, fp32",
        "trunk_mixed": "our trunk, MLPs in bf16",
    }
    group, plain = "Forward pass of one shipped seed", found["plain"]
    bars = {"trunk_fp32": "not slower than plain", "trunk_mixed": "not slower than plain"}
    return [
        Row(group, name, f"{found[key]:,.0f} tokens/s, {found[key] / plain:.2f} of plain", bars.get(key, ""))
        for key, name in names.items()
    ]


def _precision(found: dict) -> list[Row]:
    group = "Error against fp64, forward pass included, one pair of shipped seeds"
    made = [
        Row(
            group,
            "neurons with excess correlation above 0.5 in fp64",
            f"{found['universal']:,} of {found['neurons']:,} on {found['tokens']:,} tokens",
        )
    ]
    for precision in ("int8", "bf16", "fp32"):
        if precision not in found:
            continue
        for kind, name in (("corr", "max correlation"), ("excess", "excess")):
            size = found[precision][kind]
            made.append(
                Row(
                    group,
                    f"{precision}: {name}, median / 99.9th percentile / largest",
                    f"{size['median']:.1e} / {size['p99.9']:.1e} / {size['largest']:.1e}",
                    "99.9th percentile at most 1e-3 for the default",
                )
            )
        made.append(
            Row(group, f"{precision}: neurons that change side of 0.5", f"{found[precision]['changed_side']:,}")
        )
    return made


def _scaling(found: dict) -> list[Row]:
    group, seconds = "Processes under torchrun, reference against four shipped seeds", found["seconds"]
    one, two, half = seconds["one_all"], seconds["two"], seconds["one_half"]
    return [
        Row(
            group,
            "time of two processes against one process with all cores",
            f"{two['pass'] / one['pass']:.2f} in the pass ({_time(two['pass'])} and {_time(one['pass'])}, "
            f"{found['tokens']:,} tokens), {two['command'] / one['command']:.2f} for the whole command "
            f"({_time(two['command'])} and {_time(one['command'])})",
            "at most 1.15",
        ),
        Row(
            group,
            "two processes against one process with half the cores",
            f"{half['pass'] / two['pass']:.2f} times as fast in the pass ({_time(half['pass'])}), "
            f"{half['command'] / two['command']:.2f} times for the whole command",
        ),
    ]


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def text(record: dict) -> str:
    """The table for a terminal."""
    lines, group = [machine_line(record)], None
    for row in record["rows"]:
        if row["group"] != group:
            group = row["group"]
            lines += ["", group]
        lines.append(f"  {row['what']}: {row['measured']}" + (f"  [{row['bar']}]" if row["bar"] else ""))
    return "\n".join(lines)


def machine_line(record: dict) -> str:
    """Where and when, in one line."""
    machine = record["machine"]
    return f"{machine['device']}, {machine['date']}, torch {machine['torch']}, commit {machine['commit']}"
