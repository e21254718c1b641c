"""Contrast of images and captions, after CLIP (Radford et al. 2021)."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vpd.config.schema import BackboneSpec
from vpd.pretraining.backbones.examples import Examples
from vpd.pretraining.backbones.objective import VisionObjective, pooled
from vpd.pretraining.backbones.views import crops
from vpd.pretraining.clip import encode, train_tokenizer
from vpd.pretraining.diffusion.text import MATCHED, contrastive_loss
from vpd.utils.errors import UserError

WIDTH, LAYERS, HEADS = 96, 2, 4
"""Of the text tower, which is thrown away."""
LONGEST = 77
"""Tokens of a caption at most; shorter where all captions are."""
AREAS = (0.8, 1.0)
"""Share of the image that a training crop covers. CLIP crops and never mirrors, which left and right forbid here."""
FIRST_SCALE, LARGEST_SCALE = 1 / 0.07, 100.0


class Contrast(VisionObjective):
    """Pooled coarsest map and [EOS] of a small text transformer, both projected, compared by cosine."""

    sees = ("images", "captions")

    def __init__(self, backbone: nn.Module, examples: Examples, spec: BackboneSpec) -> None:
        super().__init__(backbone, examples)
        self.tokenizer = caption_tokenizer(examples, spec.vocabulary)
        self.tokens = encode(self.tokenizer, examples.captions.texts)
        self.text = build_text_tower(self.tokenizer)
        self.norm = nn.LayerNorm(backbone.channels[-1])
        self.project_image = nn.Linear(backbone.channels[-1], WIDTH, bias=False)
        self.project_text = nn.Linear(WIDTH, WIDTH, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def candidates(self, held: bool) -> Tensor:
        """Pairs of image and caption."""
        return self.examples.pairs(held)

    def pair(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B,3,H,W) and tokens (B,L) of the pairs ``batch``."""
        captions = self.examples.captions
        return self.pixels(captions.image_of[batch]), self.tokens[captions.text_of[batch]].to(self.device)

    def logits(self, maps: list[Tensor], tokens: Tensor) -> Tensor:
        """Scaled cosine similarity of images (rows) and captions (columns)."""
        image = F.normalize(self.project_image(self.norm(pooled(maps))), dim=1)
        text = F.normalize(self.project_text(self.text(tokens).pooler_output), dim=1)
        return self.log_scale.exp().clamp(max=LARGEST_SCALE) * image @ text.T

    def same(self, batch: Tensor) -> Tensor:
        """(B,B) bool: whether two pairs have the same caption."""
        text = self.examples.captions.text_of[batch].to(self.device)
        return text[:, None] == text[None]

    def loss(self, batch: Tensor, generator: Generator) -> Tensor:
        """CLIP's symmetric cross-entropy."""
        images, tokens = self.pair(batch)
        maps = self.backbone(crops(images, self.examples.size, AREAS, generator))
        return contrastive_loss(self.logits(maps, tokens), self.same(batch))

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Share of held-out images whose own caption scores best among those of a group, and that of chance.

        Groups have at most MATCHED pairs, and as equal sizes as the pairs allow.
        """
        pairs = self.candidates(held=True)
        groups = pairs.tensor_split(math.ceil(len(pairs) / MATCHED))
        right, chance = (
            torch.cat(found).float().mean().item() for found in zip(*map(self._matched, groups), strict=True)
        )
        return {"matching_accuracy": right, "chance": chance}

    def _matched(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each image's best caption is its own (B,), and the share of captions that are (B,)."""
        images, tokens = self.pair(batch)
        best = self.logits(self.backbone(images), tokens).argmax(dim=1)
        own = self.same(batch)
        return own[torch.arange(len(batch)), best], own.float().mean(dim=1)


def caption_tokenizer(examples: Examples, vocabulary: int | None) -> CLIPTokenizer:
    """Byte-pair encoding learned from the captions to train on, no longer than the longest caption."""
    if vocabulary is None:
        raise UserError("a backbone that is trained with captions needs a vocabulary; give it a number of tokens")
    tokenizer = train_tokenizer(examples.texts(held=False), vocabulary, LONGEST)
    longest = max(len(tokens) for tokens in tokenizer(examples.captions.texts).input_ids)
    tokenizer.model_max_length = min(longest, LONGEST)
    return tokenizer


def build_text_tower(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A small CLIP text transformer with fresh weights."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)
