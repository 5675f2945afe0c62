"""Replaces the environment's Python in tests of the Makefile: `resolve` is real, other steps leave their file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from lib.base import params  # noqa: E402

_, module, *arguments = sys.argv[1:] if sys.argv[1] == "-m" else ["", "none"]


def leave(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("", encoding="utf-8")
    with open("log", "a", encoding="utf-8") as log:
        log.write(line + "\n")


if module == "lib.report" and arguments[0] in ("resolve", "alone"):
    from lib.report import __main__ as steps

    params.OUTPUTS = Path("outputs")
    sys.exit(steps.main(arguments))
elif module in ("lib.collect", "lib.chapters.universality.tables"):
    step = module.split(".")[-1]
    folder = {"collect": "stats", "tables": "tables"}[step]
    leave(Path(arguments[0]).parent / folder / "done.json", step)
    (Path(arguments[0]).parent / folder / "done.json").write_text("{}", encoding="utf-8")
elif module == "lib.chapters.published.comparison":
    kept = Path(arguments[0]).parent / "tables" / "published.parquet"
    if len(arguments) == 2:
        leave(kept, f"compare {arguments[1]}")
elif module == "lib.chapters.published.runs":
    leave(Path("outputs") / arguments[0].split()[0] / "tables" / "runs.json", f"compare runs {arguments[0]}")
elif module == "lib.report.untrained":
    run = arguments[arguments.index("--run") + 1]
    if arguments[0] == "prepare":
        made, text = (
            Path("outputs") / f"untrained-{run}" / "run.yaml",
            Path("params/tiny.yaml").read_text(encoding="utf-8"),
        )
        leave(made, f"prepare {' '.join(arguments[4:])}".strip())
        made.write_text(text.replace("run: tiny", f"run: untrained-{run}"), encoding="utf-8")
    else:
        leave(Path("data") / "untrained" / "shape.parquet", "keep")
elif module == "lib.report" and arguments[0] == "execute":
    notebook = Path(arguments[1])
    if notebook.read_text(encoding="utf-8") == "fail":
        leave(Path("unfinished"), f"execute {notebook.stem}")
        sys.exit(1)
    leave(Path(arguments[2]).parent / "notebooks" / notebook.name, f"execute {notebook.stem}")
elif module == "lib.report" and arguments[0] == "render":
    leave(Path(arguments[1]) / "report" / "index.html", "render")
