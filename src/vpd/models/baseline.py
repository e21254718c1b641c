"""The baselines: a pre-trained image encoder, a neck and a decoder head, all of it trained."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from vpd.config.schema import BackboneModel, LavtModel, Spec
from vpd.models.backbones import Backbone, load_backbone
from vpd.models.base import Batch, Features, Network
from vpd.models.heads import build_head
from vpd.models.necks import LevelNorms, SimplePyramid


class Baseline(Network):
    """A backbone's maps, through a neck to a head."""

    def __init__(
        self, spec: BackboneModel, *, backbone: Backbone, neck: LevelNorms | SimplePyramid, head: nn.Module
    ) -> None:
        super().__init__()
        self.spec, self.backbone, self.neck, self.head = spec, backbone, neck, head

    def features(self, batch: Batch) -> Features:
        """Compute the features of a batch behind the neck, fine to coarse; there is no attention to text."""
        images = batch["image"]
        height, width = images.shape[-2:]
        maps = self.neck(self.backbone(images), (height, width))
        return Features(maps, self.neck.strides, [None] * len(maps))


def build_baseline(spec: Spec, checkpoint: Path, classes: list[str]) -> Baseline:
    """Build a baseline from a backbone's checkpoint folder.

    Args:
        spec: the experiment.
        checkpoint: the folder.
        classes: the dataset's class names, of which only the number matters.

    Raises:
        UserError: the checkpoint is missing or damaged, or does not fit the head.
    """
    return compose_baseline(spec, load_spec_backbone(spec, checkpoint), len(classes))


def load_spec_backbone(spec: Spec, checkpoint: Path) -> Backbone:
    """Load a spec's backbone and restore the random state, so that whatever follows starts alike for every backbone."""
    model = spec.model
    assert isinstance(model, BackboneModel | LavtModel)
    with torch.random.fork_rng(devices=[]):
        return load_backbone(
            checkpoint,
            model.backbone,
            drop_path=model.drop_path,
            gradient_checkpointing=spec.training.gradient_checkpointing,
        )


def compose_baseline(spec: Spec, backbone: Backbone, classes: int) -> Baseline:
    """Put neck and head onto a backbone, on whatever device it is (``meta`` included).

    Args:
        spec: the experiment.
        backbone: a backbone with one level, which gets a pyramid, or with several, which get a norm each.
        classes: number of the dataset's classes.
    """
    assert isinstance(spec.model, BackboneModel)
    neck: LevelNorms | SimplePyramid
    if len(backbone.strides) == 1:
        neck = SimplePyramid(backbone.channels[0], backbone.strides[0], spec.model.pyramid_channels)
    else:
        neck = LevelNorms(backbone.channels, backbone.strides)
    head = build_head(spec, neck.channels, neck.strides, classes)
    return Baseline(spec.model, backbone=backbone, neck=neck, head=head)
