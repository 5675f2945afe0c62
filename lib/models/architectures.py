"""What each architecture gets: one table, by the `model_type` of a config, and the sentences on what is left out.

Every entry is compared with plain transformers, on a small random model, in tests/models/test_architectures.py: its
activations, its folded weights and logits, and its interventions where it has them.
"""

from dataclasses import dataclass

from lib.base.errors import InputError, listed


@dataclass(frozen=True)
class Architecture:
    """What a report has of an architecture, beside activations and writing weights, which all of them have."""

    one_reader: bool  # a neuron reads through one vector w_in, not through a gate and an up-projection
    interventions: bool  # chapter 06


GATED = Architecture(one_reader=False, interventions=False)
PLAIN = Architecture(one_reader=True, interventions=False)
WHOLE = Architecture(one_reader=True, interventions=True)

ARCHITECTURES = {
    **dict.fromkeys(("gpt2", "gpt_neox"), WHOLE),
    **dict.fromkeys(
        ("apertus", "arcee", "falcon", "gpt_bigcode", "jais2", "nemotron", "persimmon", "starcoder2"), PLAIN
    ),
    **dict.fromkeys(
        (
            *("cohere", "cohere2", "cwm", "ernie4_5", "exaone4", "gemma", "gemma3_text", "granite", "helium"),
            *("hunyuan_v1_dense", "llama", "minicpm3", "ministral", "ministral3", "mistral", "olmo", "olmo2", "olmo3"),
            *("qwen2", "qwen3", "qwen3_5_text", "seed_oss", "smollm3", "stablelm"),
        ),
        GATED,
    ),
}


def check_architecture(name: str, config) -> Architecture:
    """What a seed's architecture gets; InputError for one that is not in the table, and for quantised weights."""
    kind = config.model_type
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        own = quantised if isinstance(quantised, dict) else vars(quantised)
        method = str(getattr(own.get("quant_method"), "value", own.get("quant_method") or "unknown method"))
        raise InputError(
            f"seed '{name}': its weights are quantised ({method}; quantization_config in config.json); weights in "
            "fp32, fp16 or bf16 are needed."
        )
    if kind not in ARCHITECTURES:
        inner = getattr(config, "text_config", None)
        why = ", whose text model is a part of a larger one" if inner is not None and inner is not config else ""
        raise InputError(
            f"seed '{name}': the architecture {kind}{why} is not supported; supported are "
            f"{listed(sorted(ARCHITECTURES))}."
        )
    return ARCHITECTURES[kind]


def positions_of(config) -> int:
    """How many positions a model has, at most."""
    longest = getattr(config, "max_position_embeddings", None)
    return 2**31 if longest is None or longest < 0 else longest


def without_interventions(name: str, config) -> str | None:
    """Why interventions cannot run on a model of this config, in a sentence, or None."""
    if ARCHITECTURES[config.model_type].interventions:
        return None
    gated = "" if ARCHITECTURES[config.model_type].one_reader else ", with a gated MLP"
    able = listed(kind for kind, one in ARCHITECTURES.items() if one.interventions)
    return (
        f"interventions need models of the architectures {able}, but seed '{name}' is {config.model_type}{gated}; "
        "chapter 06 leaves them out."
    )
