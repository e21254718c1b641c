"""Contrast and captioning together, after BLIP (Li et al. 2022)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from vpd.config.schema import BackboneSpec
from vpd.pretraining.backbones.contrast import AREAS, HEADS, LAYERS, WIDTH, Contrast
from vpd.pretraining.backbones.examples import Examples
from vpd.pretraining.backbones.views import crops
from vpd.pretraining.diffusion.text import contrastive_loss

SMOOTHING = 0.1
"""Label smoothing of the caption's tokens."""
IGNORED = -100


class CaptionContrast(Contrast):
    """CLIP's contrast, and a causal decoder that looks at the coarsest map and continues the caption.

    BLIP's third loss, matching with hard negatives, and its momentum encoder are left out; images are cropped, not
    mirrored, because captions say left and right.
    """

    def __init__(self, backbone: nn.Module, examples: Examples, spec: BackboneSpec) -> None:
        super().__init__(backbone, examples, spec)
        vocabulary, length = len(self.tokenizer), self.tokens.shape[1]
        self.memory = nn.Sequential(nn.LayerNorm(backbone.channels[-1]), nn.Linear(backbone.channels[-1], WIDTH))
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Parameter(torch.empty(length, WIDTH).normal_(std=0.02))
        layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, LAYERS, nn.LayerNorm(WIDTH))
        self.speak = nn.Linear(WIDTH, vocabulary)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def next_tokens(self, maps: list[Tensor], tokens: Tensor) -> Tensor:
        """Logits (B,L-1,vocabulary) of each token after the first, given the image and the tokens before it."""
        words = self.embedding(tokens[:, :-1]) + self.positions[:-1]
        causal = torch.ones(2 * [words.shape[1]], dtype=torch.bool, device=words.device).triu(1)
        memory = self.memory(maps[-1].flatten(2).transpose(1, 2))
        return self.speak(self.decoder(words, memory, tgt_mask=causal, tgt_is_causal=True))

    def loss(self, batch: Tensor, generator: Generator) -> Tensor:
        """Sum of the contrast and of the mean cross-entropy over the captions' tokens."""
        images, tokens = self.pair(batch)
        maps = self.backbone(crops(images, self.examples.size, AREAS, generator))
        spoken = self.next_tokens(maps, tokens).flatten(0, 1)
        answers = following(tokens, self.tokenizer.eos_token_id).flatten()
        words = F.cross_entropy(spoken, answers, ignore_index=IGNORED, label_smoothing=SMOOTHING)
        return contrastive_loss(self.logits(maps, tokens), self.same(batch)) + words

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """CLIP's measure, and the share of held-out captions' tokens that are foretold from those before them."""
        images, tokens = self.pair(self.candidates(held=True))
        spoken = self.next_tokens(self.backbone(images), tokens).argmax(dim=2)
        answers = following(tokens, self.tokenizer.eos_token_id)
        right = (spoken == answers)[answers != IGNORED]
        return super().measure() | {"token_accuracy": right.float().mean().item()}


def following(tokens: Tensor, end: int) -> Tensor:
    """(B,L-1): the token after each but the last; IGNORED after the first ``end``, which also is the padding."""
    after = tokens[:, 1:]
    ended = (tokens[:, :-1] == end).cumsum(dim=1) > 0
    return after.masked_fill(ended, IGNORED)
