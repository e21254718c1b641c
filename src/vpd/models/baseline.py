"""The baselines: a pre-trained image encoder, a neck and a decoder head, all of it trained."""

from pathlib import Path
from typing import Any

import torch

from vpd.config.schema import BackboneModel, LavtModel, Spec
from vpd.models.backbones import Backbone, load_backbone
from vpd.models.base import Batch, Features, Network
from vpd.models.heads import build_head
from vpd.models.necks import LevelNorms, SimplePyramid


class Baseline(Network):
    """A backbone's maps, through a neck (one level: a pyramid; several: a norm each) to a head."""

    def __init__(self, spec: Spec, backbone: Backbone, classes: int) -> None:
        super().__init__()
        assert isinstance(spec.model, BackboneModel)
        self.backbone, channels, strides = backbone, backbone.channels, backbone.strides
        self.neck: LevelNorms | SimplePyramid
        if len(strides) == 1:
            self.neck = SimplePyramid(channels[0], strides[0], spec.model.pyramid_channels)
        else:
            self.neck = LevelNorms(channels, strides)
        self.head = build_head(spec, self.neck.channels, self.neck.strides, classes)

    def features(self, batch: Batch) -> Features:
        """Compute the features of a batch behind the neck, fine to coarse; there is no attention to text."""
        height, width = batch["image"].shape[-2:]
        maps = self.neck(self.backbone(batch["image"]), (height, width))
        return Features(maps, self.neck.strides, [None] * len(maps))


def build_baseline(spec: Spec, checkpoint: Path, classes: list[str]) -> Baseline:
    """Build a baseline from a backbone's folder; UserError if that is missing or damaged, or does not fit the head."""
    return Baseline(spec, load_spec_backbone(spec, checkpoint), len(classes))


def load_spec_backbone(spec: Spec, checkpoint: Path) -> Backbone:
    """Load a spec's backbone and restore the random state, so that whatever follows starts alike for every backbone."""
    model = spec.model
    assert isinstance(model, BackboneModel | LavtModel)
    options: dict[str, Any] = {"gradient_checkpointing": spec.training.gradient_checkpointing}
    with torch.random.fork_rng(devices=[]):
        return load_backbone(checkpoint, model.backbone, drop_path=model.drop_path, **options)
