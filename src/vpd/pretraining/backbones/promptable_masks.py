"""Promptable segmentation, after SAM (Kirillov et al. 2023): a point inside a thing, and the thing's mask."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from vpd.config.schema import BackboneSpec
from vpd.pretraining.backbones.examples import Examples
from vpd.pretraining.backbones.mask_decoder import MaskDecoder
from vpd.pretraining.backbones.objective import VisionObjective
from vpd.pretraining.loop import generator_of
from vpd.utils.errors import UserError

FOCAL_WEIGHT, DICE_WEIGHT = 20.0, 1.0
FOCUS, FOREGROUND = 2.0, 0.25
"""Focal loss: gamma and alpha."""
CHUNK = 64


class PromptableMasks(VisionObjective):
    """A decoder that takes one point and the backbone's maps; one mask is predicted, where SAM offers three.

    As in SAM, images are not augmented.
    """

    sees = ("images", "masks")

    def __init__(self, backbone: nn.Module, examples: Examples, spec: BackboneSpec) -> None:
        super().__init__(backbone, examples)
        for held in (False, True):
            if not len(examples.things(held)):
                raise UserError("no thing large enough to point at is in the objects dataset; draw more images")
        self.decoder = MaskDecoder(backbone.channels)

    def candidates(self, held: bool) -> Tensor:
        """Things: numbers of the examples' instances."""
        return self.examples.things(held)

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
        """Focal and Dice loss, 20 to 1."""
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
            found = self.predict(part, masks, generator).cpu() > 0
            overlaps.append((found & masks).sum(dim=(1, 2)) / (found | masks).sum(dim=(1, 2)))
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
    found = logits.sigmoid().flatten(1)
    target = target.flatten(1)
    both = (found * target).sum(dim=1)
    return (1 - (2 * both + 1) / (found.sum(dim=1) + target.sum(dim=1) + 1)).mean()
