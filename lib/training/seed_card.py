"""The section "Seeds" of data/README.md: the template seed_card.md, filled from the shipped seeds' records."""

import json
from pathlib import Path

from lib.base.files import file_sha256

TEMPLATE = Path(__file__).with_suffix(".md").read_text(encoding="utf-8").rstrip("\n")
HEADING = TEMPLATE.partition("\n")[0] + "\n"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def parameter_count(shape: dict[str, int]) -> int:
    """Parameters of a GPT-2 with tied embeddings."""
    d, mlp = shape["d_model"], shape["d_mlp"]
    layer = 4 * d**2 + 2 * d * mlp + 9 * d + mlp
    return (shape["vocab_size"] + shape["context"] + 2) * d + shape["n_layer"] * layer


def seeds_section(folder: Path) -> str:
    """The section in Markdown, with its heading, from folder/<seed>/training.json."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/training.json"))]
    first, names = records[0], [record["seed"] for record in records]
    recipe, held_out, begun = first["recipe"], first["held_out"], first.get("begun", 0)
    shape, bigram = recipe["shape"], held_out["bigram"]
    losses = [record["held_out"]["loss"] for record in records]
    gap = bigram["loss"] - max(losses)
    phases = (
        f"from step {phase['step']:,} learning rate {phase['peak_lr']} and beta2 {phase['beta2']}"
        for phase in recipe["phases"]
        if phase["step"] < first["constant_steps"]
    )
    again = f" At step {begun:,} it started from models shipped before, at the end of their decay, with a new warm-up."
    by_domain = [
        [domain, *(f"{record['held_out']['loss_by_domain'][domain]:.3f}" for record in records), f"{loss:.3f}"]
        for domain, loss in bigram["loss_by_domain"].items()
    ]
    overall = ["**all**", *(f"**{loss:.3f}**" for loss in [*losses, bigram["loss"]])]
    weights = {f"seeds/{name}/model.safetensors": folder / name / "model.safetensors" for name in names}
    return TEMPLATE.format_map(
        first
        | recipe
        | shape
        | {
            "begun": again if begun else "",
            "phases": "; ".join(phases),
            "neurons": shape["n_layer"] * shape["d_mlp"],
            "parameters": parameter_count(shape),
            "step_tokens": recipe["batch"] * shape["context"],
            "blocks": held_out["blocks"],
            "rounding_cost": max(abs(record["rounding_cost"]) for record in records),
            "check_blocks": len(first["check"]["blocks"]),
            "losses": table(["domain", *(f"seed {name}" for name in names), "bigram"], [*by_domain, overall]),
            "spread": 100 * (max(losses) / min(losses) - 1),
            "gap": abs(gap),
            "side": "below" if gap > 0 else "above",
            "files": table(
                ["file", "SHA-256"], [[f"`{name}`", f"`{file_sha256(path)}`"] for name, path in weights.items()]
            ),
        }
    )


def write_section(readme: Path, section: str) -> None:
    """Puts `section` at the end of `readme`, in place of an older one."""
    before = readme.read_text(encoding="utf-8").split("\n" + HEADING)[0].rstrip("\n") if readme.exists() else ""
    readme.write_text(f"{before}\n\n{section}" if before else section, encoding="utf-8")
