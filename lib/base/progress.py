"""How far a whole report is, beside the bar of its stage: what each stage was expected to take, and what it took.

`make report` writes outputs/<run>/progress.json before it starts anything slow; a stage that runs without it shows its
own bar alone.
"""

import time
from pathlib import Path

from lib.base.files import read_json, write_json

FILE = "progress.json"
STAGES = ("passes", "tables", "chapters")


def begin(folder: Path, seconds: dict[str, float]) -> None:
    """Notes what each of STAGES is expected to take, in seconds; 0 for one that is done."""
    write_json(folder / FILE, {"expected": seconds, "began": {}})


class Progress:
    """One stage of a report, seen as a part of the whole."""

    def __init__(self, folder: Path, stage: str, now: float | None = None):
        self.expected, self.stage = read_json(folder / FILE).get("expected"), stage
        self.began = time.time() if now is None else now
        if self.expected:
            record = read_json(folder / FILE)
            self.began = record["began"].setdefault(stage, self.began)  # several processes share the last stage
            self.first = min(record["began"].values())
            write_json(folder / FILE, record)

    def text(self, share: float, now: float | None = None) -> str:
        """How much of the report is done and what time is left, in words, with a share of this stage done."""
        if not self.expected:
            return ""
        now = time.time() if now is None else now
        spent, planned = now - self.began, self.expected[self.stage]
        whole = spent / share if share > 0.1 else max(planned, spent)
        later = sum(self.expected[stage] for stage in STAGES[STAGES.index(self.stage) + 1 :])
        left = max(0.0, whole - spent) + later
        done = (now - self.first) / max(now - self.first + left, 1e-9)
        return f"whole report {done:.0%}, {_words(left)} left"


def _words(seconds: float) -> str:
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.0f} h"
