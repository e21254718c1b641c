"""Parameters and multiply-adds by part, counted on the meta device: shapes without contents, a second per network."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from vpd.config.schema import Spec
from vpd.models.prompts import FROM_IMAGES
from vpd.planning.cost.mmcv import MmcvCounter
from vpd.planning.cost.network import Parts, build, make_batch

PARTS = ("vae", "unet", "adapter", "backbone", "language", "fusion", "neck", "head")
"""Of VPD the first three, of a baseline the backbone, of LAVT the next three; then what decodes their features."""


@dataclass(frozen=True)
class Part:
    """One part of the network; multiply-adds are those of the forward pass of one training image."""

    parameters: int
    trainable: int
    macs: int
    mmcv_macs: int


NOTHING = Part(0, 0, 0, 0)


def count(spec: Spec, parts: Parts, classes: int) -> dict[str, Part]:
    """Parameters and multiply-adds by part; a head's own ``neck`` is counted as neck, not as head.

    True multiply-adds are half of what torch's counter gives: convolutions and all matrix products, those of attention
    included; norms, activations and biases not.
    """
    counter = FlopCounterMode(display=False)
    with torch.device("meta"):
        model = build(spec, parts, classes).eval()
        with torch.no_grad(), counter, MmcvCounter(model) as mmcv:
            model(make_batch(spec, 1, classes))
    flops = {name: sum(by_kind.values()) for name, by_kind in counter.get_flop_counts().items()}

    def part(module: nn.Module, name: str) -> Part:
        macs = _within(flops, f"{type(model).__name__}.{name}") // 2
        return Part(size(module), size(module, True), macs, mmcv.total(name))

    found = {name: part(module, name) for name, module in model.named_children() if _has_work(module, name)}
    neck = getattr(model.head, "neck", None)
    if neck is not None:
        inner = part(neck, "head.neck")
        found["neck"] = _plus(found.get("neck", NOTHING), inner)
        found["head"] = _plus(found["head"], inner, sign=-1)
    return {name: found[name] for name in PARTS if name in found}


def _within(flops: dict[str, int], name: str) -> int:
    """Operations of a module, or of its parts where others call those one by one (LAVT its backbone's stages)."""
    inside = {path for path in flops if f"{path}.".startswith(f"{name}.")}
    outermost = {path for path in inside if not any(path.startswith(f"{other}.") for other in inside)}
    return sum(flops[path] for path in outermost)


def _has_work(module: nn.Module, name: str) -> bool:
    return name in PARTS and not (name == "neck" and isinstance(module, nn.Identity))


def text_parameters(spec: Spec, parts: Parts) -> int:
    """Parameters of VPD's frozen text encoder if it stays in the network: elsewhere it has done its work before."""
    if spec.model.kind != "vpd" or spec.model.prompt.strategy not in FROM_IMAGES:
        return 0
    with torch.device("meta"):
        return size(CLIPTextModel(CLIPTextConfig.from_dict(parts["text_encoder"])))


def size(module: nn.Module, trainable: bool = False) -> int:
    """Parameters of a module, or only its trainable ones."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def _plus(one: Part, other: Part, sign: int = 1) -> Part:
    return Part(*(a + sign * b for a, b in zip(astuple(one), astuple(other), strict=True)))
