"""What the passes left in a run's folder, for the algebra that follows."""

import torch

from lib.base.tensors import TensorFiles
from lib.kernels.correlation import Covariance
from lib.kernels.moments import Moments
from lib.run import Run


def load_accumulators(run: Run, device: torch.device | str = "cpu") -> tuple[Covariance, dict[str, Moments]]:
    """A run's finished covariances, read from disk to the device block by block, and its moments by seed."""
    stats = run.folder / "stats"
    stored = TensorFiles(sorted(stats.glob("moments-*.safetensors")))
    seeds, references = tuple(run.done["seeds"]), tuple(run.done["references"])
    moments = {}
    for name in seeds:
        state = {
            key: stored.tensor(f"{name}.{key}").to(device) for key in ("sums", "tokens", "pre_scaling", "post_scaling")
        }
        moments[name] = Moments(state["pre_scaling"], state["post_scaling"])
        moments[name].load_state_dict(state)
    pair = TensorFiles(sorted(stats.glob("pair-*.safetensors")))
    within = TensorFiles(sorted(stats.glob("within-*.safetensors")))
    pairs = sorted({(name.split(".")[0], name.split(".")[2]) for name in pair.names()})
    covariance = Covariance(
        seeds,
        tuple(pairs),
        references,
        run.done["layers"],
        run.done["neurons"],
        pair=lambda a, layer, b, other: pair.part(f"{a}.{layer}.{b}.sums", other).to(device),
        within=lambda seed, layer: within.part(f"{seed}.sums", layer).to(device),
    )
    return covariance, moments
