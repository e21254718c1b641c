"""Networks: ``build_model`` is the one place that makes them from a spec.

All that decides a network's numbers lies in this package: the digest of its code is part of every run's fingerprint.
"""

from pathlib import Path

from vpd.config.schema import Spec
from vpd.models.base import Features, LatentCache, Network

__all__ = ["Features", "LatentCache", "Network", "build_model"]


def build_model(spec: Spec, checkpoint: Path, classes: list[str]) -> Network:
    """Build the network of one experiment; new weights come from torch's global seed.

    ``checkpoint`` is the folder of Stable Diffusion (VPD) or of a backbone (baselines, LAVT); ``classes`` are the dataset's
    class names in label order. UserError if checkpoint and spec do not fit each other.
    """
    # Imported here: diffusers, transformers and timm take seconds each, and no network needs all three.
    if spec.model.kind == "vpd":
        from vpd.models.network import build_vpd

        return build_vpd(spec, checkpoint, classes)
    if spec.model.kind == "backbone":
        from vpd.models.baseline import build_baseline

        return build_baseline(spec, checkpoint, classes)
    from vpd.models.lavt import build_lavt

    return build_lavt(spec, checkpoint)
