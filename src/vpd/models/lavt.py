"""LAVT (Yang et al. 2022): a Swin Transformer that takes an expression's words in at every stage."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertModel, PreTrainedTokenizerBase

from vpd.config.schema import LavtModel, Spec
from vpd.models.backbones import Backbone, load_backbone
from vpd.models.backbones.hierarchical import SwinBackbone
from vpd.models.features import Features
from vpd.models.heads import HEADS
from vpd.models.language import Words, load_language
from vpd.models.pixel_words import WordFusion
from vpd.models.state import load_trained_state, trained_state
from vpd.utils.errors import UserError

CLASSES = 2
"""Background and the object that the expression refers to."""


class Lavt(nn.Module):
    """Stages of a Swin Transformer with word fusion between them, BERT, and a decoder head; all of it is trained."""

    latents = None
    """Nothing is computed before training."""

    def __init__(
        self, spec: LavtModel, *, backbone: SwinBackbone, language: Words, fusion: WordFusion, head: nn.Module
    ) -> None:
        super().__init__()
        self.spec, self.backbone, self.language, self.fusion, self.head = spec, backbone, language, fusion, head

    def forward(self, batch: dict) -> Tensor:
        """Predict logits (batch, 2, H, W) from ``image`` (batch, 3, H, W) in [-1, 1] and ``text``, one per image."""
        return self.head(self.features(batch), batch["image"].shape[-2:])

    def features(self, batch: dict) -> Features:
        """What the stages' pixels and words were fused to, fine to coarse; attention to words is not kept."""
        images, network = batch["image"], self.backbone.network
        self._check_size(images)
        words, mask = self.language(batch["text"])
        x, maps = network.patch_embed(self.backbone.prepare(images)), []
        for level, stage in enumerate(network.layers):
            fused, x = self.fusion(level, stage(x), words, mask)
            maps.append(fused)
        return Features(maps, list(self.backbone.strides), [None] * len(maps))

    def _check_size(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if max(height, width) <= self.backbone.strides[-1]:
            raise UserError(
                f"an image of {height}x{width} pixels is a single pixel at LAVT's coarsest stage, which cannot be "
                f"normalised; make a side longer than {self.backbone.strides[-1]} (data.size, evaluation.size)"
            )

    def trained_state(self) -> dict[str, Tensor]:
        """Copies of all tensors, contiguous and in main memory."""
        return trained_state(self)

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Load what ``trained_state`` gave; UserError if any tensor is missing, unexpected or of another shape."""
        load_trained_state(self, state)


def build_lavt(spec: Spec, checkpoint: Path, classes: list[str]) -> Lavt:
    """Build LAVT from a checkpoint folder with vision/ and language/; new weights come from torch's global seed.

    ``classes`` are not looked at: what to find is in the expression.
    """
    # Restoring the random state gives every backbone, and the random one, the same initial fusion and head.
    with torch.random.fork_rng(devices=[]):
        backbone = load_backbone(
            checkpoint,
            spec.model.backbone,
            drop_path=spec.model.drop_path,
            gradient_checkpointing=spec.training.gradient_checkpointing,
        )
        bert, tokenizer = load_language(checkpoint)
    return compose_lavt(spec, backbone, bert, tokenizer)


def compose_lavt(spec: Spec, backbone: Backbone, bert: BertModel, tokenizer: PreTrainedTokenizerBase) -> Lavt:
    """Put LAVT together from its parts, on whatever device they are (``meta`` included).

    UserError if the task has no expressions, or the backbone is no Swin Transformer.
    """
    model = spec.model
    if spec.task != "referring":
        raise UserError(
            f"method '{spec.method}' needs expressions, which task '{spec.task}' lacks; choose another method"
        )
    if not isinstance(backbone, SwinBackbone):
        raise UserError(
            f"method '{spec.method}' needs a Swin Transformer, but checkpoint '{spec.checkpoint}' is a "
            f"{type(backbone.network).__name__}; choose another checkpoint"
        )
    channels, width = backbone.channels, bert.config.hidden_size
    return Lavt(
        model,
        backbone=backbone,
        language=Words(bert, tokenizer, model.length),
        fusion=WordFusion(channels, width, model.fusion_heads, model.fusion_dropout),
        head=HEADS[model.head.kind](model.head, channels, backbone.strides, CLASSES),
    )
