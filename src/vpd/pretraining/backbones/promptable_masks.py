"""Promptable segmentation: the objective, its losses, and the decoder that turns a point and an image into a mask."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from vpd.config.schema import BackboneSpec
from vpd.models.backbones import Backbone
from vpd.pretraining.backbones.examples import Examples
from vpd.pretraining.backbones.objective import CHUNK, VisionObjective
from vpd.pretraining.loop import generator_of
from vpd.utils.errors import UserError

FOCAL_WEIGHT, DICE_WEIGHT = 20.0, 1.0
FOCUS, FOREGROUND = 2.0, 0.25  # focal loss: gamma and alpha
WIDTH, LAYERS, HEADS = 64, 2, 4  # of the mask decoder, which is thrown away (SAM: 256, 2 and 8)


class PromptableMasks(VisionObjective):
    """Learn to segment the thing under a point, after SAM (Kirillov et al. 2023; B4).

    One mask is predicted where SAM offers three: the synthetic scenes know things, but neither parts nor groups.
    """

    kind = "things"

    def __init__(self, backbone: Backbone, examples: Examples, spec: BackboneSpec) -> None:
        super().__init__(backbone, examples, spec)
        if not all(len(self.candidates(held)) for held in (False, True)):
            raise UserError("no thing large enough to point at is in the objects dataset; draw more images")
        self.decoder = MaskDecoder(backbone.channels)

    def masks(self, batch: Tensor) -> Tensor:
        """(B,H,W) bool masks of the things ``batch``."""
        image, number = self.examples.instances[batch].unbind(1)
        return self.examples.masks[image] == number[:, None, None]

    def predict(self, batch: Tensor, masks: Tensor, generator: Generator) -> Tensor:
        """Mask logits (B,H,W) of the things, each prompted by a random one of its pixels."""
        points = points_inside(masks, generator).to(self.device)
        maps = self.backbone(self.pixels(self.examples.instances[batch, 0]))
        logits = self.decoder(maps, points)[:, None]
        return F.interpolate(logits, size=masks.shape[-2:], mode="bilinear", align_corners=False)[:, 0]

    def loss(self, batch: Tensor, generator: Generator) -> Tensor:
        """Focal and Dice loss, 20 to 1 as in SAM."""
        masks = self.masks(batch)
        logits = self.predict(batch, masks, generator)
        target = masks.to(logits)
        return FOCAL_WEIGHT * focal_loss(logits, target) + DICE_WEIGHT * dice_loss(logits, target)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Mean IoU over the held-out things."""
        generator, overlaps = generator_of("held-out points"), []
        for part in self.candidates(held=True).split(CHUNK):
            masks = self.masks(part)
            predicted = self.predict(part, masks, generator).cpu() > 0
            overlaps.append((predicted & masks).sum(dim=(1, 2)) / (predicted | masks).sum(dim=(1, 2)))
        return {"mean_iou": torch.cat(overlaps).mean().item()}


def points_inside(masks: Tensor, generator: Generator) -> Tensor:
    """(B,2) x and y in [0,1] of the centre of a random pixel of each mask (B,H,W)."""
    height, width = masks.shape[-2:]
    chosen = torch.multinomial(masks.flatten(1).float(), 1, generator=generator)[:, 0]
    rows, columns = chosen // width, chosen % width
    return torch.stack([(columns + 0.5) / width, (rows + 0.5) / height], dim=1)


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of (B,H,W) times (1 - p)^FOCUS, p the right answer's probability, and times FOREGROUND or its rest."""
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    weight = FOREGROUND * target + (1 - FOREGROUND) * (1 - target)
    return (weight * (1 - (-entropy).exp()) ** FOCUS * entropy).mean()


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """One minus 2|A and B| / (|A| + |B|), one added above and below, mean over (B,H,W)."""
    predicted, target = logits.sigmoid().flatten(1), target.flatten(1)
    both = (predicted * target).sum(dim=1)
    return (1 - (2 * both + 1) / (predicted.sum(dim=1) + target.sum(dim=1) + 1)).mean()


class MaskDecoder(nn.Module):
    """SAM's two-way decoder, smaller: maps of a backbone, resized to the finest and added, and a point to mask logits."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(count, WIDTH, 1) for count in channels)
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.randn(2, WIDTH // 2))
        self.point = nn.Parameter(torch.randn(WIDTH))
        self.mask = nn.Parameter(torch.randn(WIDTH))
        self.layers = nn.ModuleList(TwoWayLayer() for _ in range(LAYERS))
        double, again = nn.ConvTranspose2d(WIDTH, WIDTH // 2, 2, 2), nn.ConvTranspose2d(WIDTH // 2, WIDTH // 4, 2, 2)
        self.enlarge = nn.Sequential(double, nn.GroupNorm(1, WIDTH // 2), nn.GELU(), again, nn.GELU())
        self.select = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH // 4))

    def forward(self, maps: list[Tensor], points: Tensor) -> Tensor:
        """(B,4h,4w) logits, h and w of the finest map; points (B,2) are x and y in [0,1]."""
        height, width = maps[0].shape[-2:]
        levels = [lateral(level) for lateral, level in zip(self.laterals, maps, strict=True)]
        resized = [F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False) for x in levels]
        fused = sum(resized, torch.zeros(()))
        rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
        centres = torch.cartesian_prod(rows, columns).flip(1)  # (h*w, 2) x and y of the cells, row by row
        positions = self.encode(centres.to(fused))[None]
        prompt = torch.stack([self.mask.expand(len(points), -1), self.encode(points) + self.point], dim=1)
        tokens, image = prompt, fused.flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens, image = layer(tokens, image, prompt, positions)
        enlarged = self.enlarge(image.transpose(1, 2).unflatten(2, (height, width)))
        return torch.einsum("bc,bchw->bhw", self.select(tokens[:, 0]), enlarged)

    def encode(self, points: Tensor) -> Tensor:
        """(..., WIDTH) sines and cosines of random projections of points (..., 2) in [0,1]."""
        angles = 2 * math.pi * (2 * points - 1) @ self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TwoWayLayer(nn.Module):
    """Tokens attend to one another and to the image, are transformed, and the image attends to them."""

    def __init__(self) -> None:
        super().__init__()
        self.among, self.to_image, self.to_tokens = (
            nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) for _ in range(3)
        )
        self.mix = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(4))

    def forward(self, tokens: Tensor, image: Tensor, prompt: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Update tokens (B,T,C) and image (B,N,C); ``prompt`` and ``positions`` are added to their queries and keys."""
        queries = tokens + prompt
        tokens = self.norms[0](tokens + self.among(queries, queries, tokens, need_weights=False)[0])
        tokens = self.norms[1](tokens + self.to_image(tokens + prompt, image + positions, image, need_weights=False)[0])
        tokens = self.norms[2](tokens + self.mix(tokens))
        update = self.to_tokens(image + positions, tokens + prompt, tokens, need_weights=False)[0]
        return tokens, self.norms[3](image + update)
