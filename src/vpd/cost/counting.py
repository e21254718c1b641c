"""Parameters and multiply-adds by part, counted on the meta device: shapes without contents, a second per network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from vpd.cost.mmcv import MmcvCounter
from vpd.cost.network import build, make_batch
from vpd.models.prompts import FROM_IMAGES
from vpd.spec import Spec

PARTS = ("vae", "unet", "adapter", "neck", "head")


@dataclass(frozen=True)
class Part:
    """One part of the network; multiply-adds are those of the forward pass of one training image."""

    parameters: int
    trainable: int
    macs: int
    mmcv_macs: int


def count(spec: Spec, parts: dict[str, dict], classes: int) -> dict[str, Part]:
    """Parameters and multiply-adds by part; a head without a ``neck`` of its own name has no such entry.

    True multiply-adds are half of what torch's counter gives: convolutions and all matrix products, those of attention
    included; norms, activations and biases not.
    """
    counter = FlopCounterMode(display=False)
    with torch.device("meta"):
        model = build(spec, parts, classes)
        with torch.no_grad(), counter, MmcvCounter(model) as mmcv:
            model(make_batch(spec, 1, classes))
    flops = {name: sum(by_kind.values()) for name, by_kind in counter.get_flop_counts().items()}

    def part(module: nn.Module, name: str) -> Part:
        return Part(size(module), size(module, True), flops.get(f"VPD.{name}", 0) // 2, mmcv.total(name))

    found = {name: part(module, name) for name, module in model.named_children() if name in PARTS}
    neck = getattr(model.head, "neck", None)
    if neck is not None:
        found["neck"] = part(neck, "head.neck")
        found["head"] = _less(found["head"], found["neck"])
    return {name: found[name] for name in PARTS if name in found}


def text_parameters(spec: Spec, parts: dict[str, dict]) -> int:
    """Parameters of the frozen text encoder if it stays in the network: elsewhere it has done its work before."""
    if spec.model.prompt.strategy not in FROM_IMAGES:
        return 0
    with torch.device("meta"):
        return size(CLIPTextModel(CLIPTextConfig.from_dict(parts["text_encoder"])))


def size(module: nn.Module, trainable: bool = False) -> int:
    """Parameters of a module, or only its trainable ones."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def _less(whole: Part, part: Part) -> Part:
    return Part(
        whole.parameters - part.parameters,
        whole.trainable - part.trainable,
        whole.macs - part.macs,
        whole.mmcv_macs - part.mmcv_macs,
    )
