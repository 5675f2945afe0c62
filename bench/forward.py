"""Tokens a second of the forward pass that feeds the statistics, the plain model and TransformerLens' Bridge."""

import torch
from transformer_lens.model_bridge import TransformerBridge

from bench.engine import shipped_run
from bench.machine import interleaved, median
from lib.base.hub import seed_source
from lib.collect.planner import batch_blocks
from lib.models.trunk import Trunk, load_model

HOOKS = ("mlp.hook_pre", "mlp.hook_post")


def forward_rates(device: torch.device, blocks: int, rounds: int) -> dict[str, float]:
    """Tokens a second by name, on the same batches of the shipped text."""
    run = shipped_run(("a", "b"), blocks * 256, "auto")
    source = seed_source(run.params, "a")
    batches = [batch.to(device) for batch in run.text.tokens.split(batch_blocks(device.type, 256, 1024, 2**20))]
    plain = load_model(source).to(device)
    bridge = TransformerBridge.boot_transformers(source, device=str(device))
    trunks = {mixed: Trunk(load_model(source).to(device), mixed) for mixed in (False, True)}

    def over_batches(forward):
        def work() -> None:
            with torch.inference_mode():
                for batch in batches:
                    forward(batch)

        return work

    def seen(*_arguments) -> None:
        pass

    work = {
        "plain": over_batches(lambda batch: plain.transformer(batch, use_cache=False)),
        "plain_with_logits": over_batches(lambda batch: plain(batch, use_cache=False)),
        "bridge": over_batches(lambda batch: bridge.run_with_cache(batch, names_filter=lambda n: n.endswith(HOOKS))),
        "trunk_fp32": over_batches(lambda batch: trunks[False].run(batch, seen)),
        "trunk_mixed": over_batches(lambda batch: trunks[True].run(batch, seen)),
    }
    for call in work.values():
        call()
    times = interleaved(device, work, rounds)
    return {name: blocks * 256 / median(values) for name, values in times.items()}
