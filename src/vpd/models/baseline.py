"""The baselines: a pre-trained image encoder, a neck and a decoder head, all of it trained."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vpd.config.schema import BackboneModel, Spec
from vpd.models.backbones import Backbone, load_backbone
from vpd.models.features import Features
from vpd.models.heads import HEADS
from vpd.models.pyramid import LevelNorms, SimplePyramid
from vpd.models.state import load_trained_state, trained_state


class Baseline(nn.Module):
    """A backbone's maps, through a neck to a head."""

    latents = None
    """Nothing is computed before training: all of the network is trained."""

    def __init__(
        self, spec: BackboneModel, *, backbone: Backbone, neck: LevelNorms | SimplePyramid, head: nn.Module
    ) -> None:
        super().__init__()
        self.spec, self.backbone, self.neck, self.head = spec, backbone, neck, head

    def forward(self, batch: dict) -> Tensor:
        """Predict from ``batch["image"]`` (batch, 3, H, W) in [-1, 1]: logits (batch, classes, h, w), or metres."""
        return self.head(self.features(batch), batch["image"].shape[-2:])

    def features(self, batch: dict) -> Features:
        """Features of a batch behind the neck, fine to coarse; there is no attention to text."""
        images = batch["image"]
        maps = self.neck(self.backbone(images), tuple(images.shape[-2:]))
        return Features(maps, self.neck.strides, [None] * len(maps))

    def trained_state(self) -> dict[str, Tensor]:
        """Copies of all tensors, contiguous and in main memory."""
        return trained_state(self)

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Load what ``trained_state`` gave; UserError if any tensor is missing, unexpected or of another shape."""
        load_trained_state(self, state)


def build_baseline(spec: Spec, checkpoint: Path, classes: list[str]) -> Baseline:
    """Build the network of one experiment from a backbone's checkpoint folder; new weights come from torch's global seed.

    Of ``classes`` only the number matters.
    """
    # Restoring the random state gives every backbone, and the random one, the same initial head.
    with torch.random.fork_rng(devices=[]):
        backbone = load_backbone(
            checkpoint,
            spec.model.backbone,
            drop_path=spec.model.drop_path,
            gradient_checkpointing=spec.training.gradient_checkpointing,
        )
    return compose_baseline(spec, backbone, len(classes))


def compose_baseline(spec: Spec, backbone: Backbone, classes: int) -> Baseline:
    """Put neck and head onto a backbone, on whatever device it is (``meta`` included)."""
    model = spec.model
    if len(backbone.strides) == 1:
        neck = SimplePyramid(backbone.channels[0], backbone.strides[0], model.pyramid_channels)
    else:
        neck = LevelNorms(backbone.channels, backbone.strides)
    outputs = {"segmentation": classes, "referring": 2, "depth": 1}[spec.task]
    head = HEADS[model.head.kind](model.head, neck.channels, neck.strides, outputs)
    return Baseline(model, backbone=backbone, neck=neck, head=head)
