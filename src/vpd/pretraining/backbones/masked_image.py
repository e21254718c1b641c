"""Masked image modelling."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from vpd.config.schema import BackboneSpec
from vpd.models.backbones import Backbone
from vpd.pretraining.backbones.examples import Examples, crops, flipped
from vpd.pretraining.backbones.objective import CHUNK, VisionObjective
from vpd.pretraining.loop import generator_of
from vpd.utils.errors import UserError

LEAST_UNIT = 8  # pixels on a side of what is hidden at once: a smaller patch could be copied from its neighbours
AREAS = (0.67, 1.0)  # share of the image that a training crop covers (SimMIM's)
FLOOR = 0.02  # added to a patch's standard deviation, of images in [-1,1], so that a flat wall's grain is not blown up
COLOURS = 3


class MaskedImage(VisionObjective):
    """Learn to predict the pixels of hidden patches, each patch normalised by itself.

    After SimMIM (Xie et al. 2022) and MAE (He et al. 2022); stands in for SwinV2's SimMIM weights, which are in no hub
    (B3), and for BEiT v2 (B5) and MAE. The predictions of all levels add up; SimMIM reads only the coarsest one.
    """

    def __init__(self, backbone: Backbone, examples: Examples, spec: BackboneSpec) -> None:
        super().__init__(backbone, examples, spec)
        assert spec.training is not None  # pretrain_backbone has checked
        self.share = spec.training.mask_share
        self.unit = backbone.mask_stride * -(-LEAST_UNIT // backbone.mask_stride)
        height, width = examples.captions.size
        if height % self.unit or width % self.unit:
            raise UserError(
                f"images are {width}x{height}, but masked-image hides squares of {self.unit}; use multiples"
            )
        self.token = nn.Parameter(torch.empty(backbone.mask_width).normal_(std=0.02))
        self.predictors = nn.ModuleList(
            nn.Conv2d(channels, COLOURS * stride**2, 1)
            for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
        )

    def hide(self, count: int, generator: Generator) -> Tensor:
        """(count, H/unit, W/unit) bool: the same number of hidden squares in every image, at random positions."""
        rows, columns = (side // self.unit for side in self.examples.captions.size)
        hidden = max(1, round(self.share * rows * columns))
        order = torch.rand(count, rows * columns, generator=generator).argsort(dim=1).argsort(dim=1)
        return (order < hidden).reshape(count, rows, columns).to(self.device)

    def predict(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Normalised pixels (B,3,H,W) of images whose squares ``hidden`` the backbone does not see."""
        patches = enlarge(hidden, self.unit // self.backbone.mask_stride)
        maps = self.backbone(images, mask=patches, mask_token=self.token)
        height, width = images.shape[-2:]
        levels = [
            F.pixel_shuffle(predictor(level), stride)[..., :height, :width]
            for level, predictor, stride in zip(maps, self.predictors, self.backbone.strides, strict=True)
        ]
        return sum(levels, torch.zeros(()))

    def loss(self, batch: Tensor, generator: Generator) -> Tensor:
        """Mean squared error over the hidden pixels."""
        images = flipped(crops(self.pixels(batch), self.examples.captions.size, AREAS, generator), generator)
        hidden = self.hide(len(batch), generator)
        return hidden_error(self.predict(images, hidden), normalise_squares(images, self.unit), hidden)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Share of the hidden pixels' variance within their patches that is predicted; predicting the mean gives 0."""
        generator, error, spread = generator_of("held-out squares"), 0.0, 0.0
        for part in self.candidates(held=True).split(CHUNK):
            images, hidden = self.pixels(part), self.hide(len(part), generator)
            target = normalise_squares(images, self.unit)
            error += len(part) * hidden_error(self.predict(images, hidden), target, hidden).item()
            spread += len(part) * hidden_error(torch.zeros_like(target), target, hidden).item()
        return {"explained_variance": 1 - error / spread}


def enlarge(cells: Tensor, factor: int) -> Tensor:
    """(B,H,W) with every cell repeated ``factor`` times down and across."""
    return cells.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def normalise_squares(images: Tensor, unit: int) -> Tensor:
    """Images whose squares of ``unit`` pixels have mean 0 and a standard deviation of (almost) 1, colours together."""
    batch, colours, height, width = images.shape
    squares = images.reshape(batch, colours, height // unit, unit, width // unit, unit)
    mean = squares.mean(dim=(1, 3, 5), keepdim=True)
    std = squares.std(dim=(1, 3, 5), keepdim=True, correction=0)
    return ((squares - mean) / (std + FLOOR)).reshape(images.shape)


def hidden_error(predicted: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Mean squared error of images (B,3,H,W) over the squares marked in ``hidden`` (B,rows,columns)."""
    weight = enlarge(hidden, target.shape[-1] // hidden.shape[-1])[:, None].to(target)
    return ((predicted - target).square() * weight).sum() / (weight.sum() * target.shape[1])
