"""Measurements as a table: what was measured, the number with its unit, and the bar it is held against."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

FORMAT = 2  # of the parts in a record; those of another one are measured anew


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
        "overhead": _overhead,
        "costs": _costs,
        "errors": _errors,
        "forward": _forward,
        "at_once": _at_once,
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
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        known = stored.get("machine", {})
        same = stored.get("format") == FORMAT
        same &= all(known.get(key) == machine[key] for key in ("device", "cores", "torch"))
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
            "format": FORMAT,
            "machine": machine,
            "rows": rows({name: part["measured"] for name, part in self.parts.items()}),
            "parts": self.parts,
        }


def at_tokens(record: dict, tokens: int) -> float:
    """Seconds that a way measured on fewer tokens takes on `tokens`: what it does once, and its pass in proportion."""
    return record["fixed_seconds"] + record["pass_seconds"] * tokens / record["tokens"]


def _whole(found: dict) -> list[Row]:
    ours, published, exact = found["ours"], found["published"], found["exact"]
    once, twice = found["published_pair"]
    group = "From seeds and text to results, forward passes included: one reference against four"
    rows = []
    for one in ours:
        theirs = at_tokens(published, one["tokens"])
        rows += [
            Row(
                group,
                f"sketch against the published algorithm, {one['tokens']:,} tokens",
                f"{theirs / one['seconds']:.1f} times as fast: {_time(one['seconds'])} against {_time(theirs)} "
                f"(published on {published['tokens']:,} tokens, its pass in proportion)",
                "20 times at a million tokens on two cores" if one is ours[-1] else "",
            ),
            Row(
                group,
                f"sketch, {one['tokens']:,} tokens: what does not grow with them (loading, algebra); peak memory",
                f"{_time(one['fixed_seconds'])}; {one['peak_bytes'] / 1e9:.2f} GB",
            ),
        ]
    grown = ours[-1]["pass_seconds"] / ours[0]["pass_seconds"]
    rows += [
        Row(
            group,
            "sketch: exponent of the pass's time in the number of tokens (1 is linear)",
            f"{math.log(grown) / math.log(ours[-1]['tokens'] / ours[0]['tokens']):.2f}",
        ),
        Row(
            group,
            f"exact sums over all pairs, {exact['tokens']:,} tokens",
            f"{_time(exact['seconds'])}, {exact['seconds'] / ours[0]['seconds']:.1f} times the sketch's; peak memory "
            f"{exact['peak_bytes'] / 1e9:.2f} GB",
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
        Row(group, "published algorithm: peak memory, one pair at a time", f"{published['peak_bytes'] / 1e9:.2f} GB"),
    ]
    return rows


def _per_thousand(record: dict) -> str:
    return f"{1000 * record['pass_seconds'] / record['tokens']:.2f} s"


def _overhead(found: dict[str, float]) -> list[Row]:
    group, alone = (
        "The pass of five seeds, all pairs, in turns with its forward passes alone",
        found["forward passes alone"],
    )
    bars = {"pass": "1.4", "pass with grouped moments": "1.9"}
    return [
        Row(group, name, f"{rate:,.0f} tokens/s, {alone / rate:.2f} times as long", bars.get(name, ""))
        for name, rate in found.items()
    ]


def _costs(found: dict) -> list[Row]:
    group = f"Statistics of one pair, activations given, in {found['precision']}, {found['rows']:,} rows"
    rows = []
    for one in found["sizes"]:
        sketch, exact = one["sketch"], one["exact"]
        rows.append(
            Row(
                group,
                f"N = {one['neurons']:,}: a token, and once at the end",
                f"sketch {1e6 * sketch['per_token']:.1f} µs and {sketch['once']:.1f} s; "
                f"exact {1e6 * exact['per_token']:.1f} µs and {exact['once']:.1f} s",
            )
        )
    fitted = found["exponents"]
    rows.append(
        Row(
            group, "exponent of N in the cost of a token", f"sketch {fitted['sketch']:.2f}, exact {fitted['exact']:.2f}"
        )
    )
    return rows


def _errors(found: dict) -> list[Row]:
    group = (
        f"Sketch of {found['rows']:,} rows against exact sums, {found['tokens']:,} tokens, all pairs, both directions"
    )

    def sizes(one: dict) -> str:
        return f"{one['mean']:+.1e} / {one['median']:.1e} / {one['p99.9']:.1e} / {one['largest']:.1e}"

    each = ", ".join(
        f"{k} candidates {one['within']:.3%} ({one['pairs_per_neuron']:.0f} pairs a neuron)"
        for k, one in found["by_candidates"].items()
    )
    return [
        Row(group, "partner within 1e-3 of the best", f"{found['partner_within']:.3%} of neurons", "99.9 %"),
        Row(group, "a followed pair within 1e-3 of the best, by number of candidates", each),
        Row(
            group,
            "best match on the same tokens, error: mean / median / 99.9th percentile / largest",
            sizes(found["best_match"]),
            "99.9th percentile 2e-3",
        ),
        Row(
            group,
            "baseline of five draws, the same in both, error: mean / median / 99.9th percentile / largest",
            sizes(found["baseline"]),
            "mean 1e-3, median 4e-3",
        ),
        Row(group, "baselines of two sets of five draws, both exact, difference: likewise", sizes(found["two_sets"])),
        Row(
            group,
            "universal neurons of all seeds that change side of 0.5",
            f"{found['changed']} by the sketch, {found['changed_by_draws']} by other draws, of {found['universal']}",
            "fewer than by other draws",
        ),
        Row(group, "neurons with a better match outside the followed pairs, by 4/√rows", f"{found['outsiders']}"),
    ]


def _at_once(found: dict) -> list[Row]:
    group, slowest = f"Two passes at once, {found['tokens']:,} tokens each", max(found["both"])
    return [
        Row(
            group,
            "time of each against one alone",
            f"{slowest / found['alone']:.2f} times ({', '.join(map(_time, found['both']))}; "
            f"alone {_time(found['alone'])})",
            "2.3 times",
        )
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
