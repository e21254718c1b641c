"""Contrast of images and captions, alone (CLIP) and together with captioning (BLIP)."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from vpd.config.schema import BackboneSpec
from vpd.models.backbones import Backbone
from vpd.pretraining.backbones.examples import Examples, crops
from vpd.pretraining.backbones.objective import VOCABULARY, VisionObjective, pooled
from vpd.pretraining.clip import MATCHED, contrastive_loss, encode, special_tokens, train_tokenizer

WIDTH, LAYERS, HEADS = 96, 2, 4  # of the text networks, which are thrown away
LONGEST = 77  # tokens of a caption at most; shorter if all captions are
AREAS = (0.8, 1.0)  # share of the image that a crop covers; images are not mirrored: captions say left and right
FIRST_SCALE, LARGEST_SCALE = 1 / 0.07, 100.0
SMOOTHING = 0.1  # label smoothing of the caption's tokens (BLIP's)
IGNORED = -100


class Contrast(VisionObjective):
    """Learn to match images with their captions, after CLIP (Radford et al. 2021); CLIP-ViT-B's objective (B1)."""

    kind = "pairs"

    def __init__(self, backbone: Backbone, examples: Examples, spec: BackboneSpec) -> None:
        super().__init__(backbone, examples, spec)
        assert spec.vocabulary is not None  # pretrain_backbone has checked
        self.tokenizer = train_tokenizer(examples.texts(held=False), spec.vocabulary, LONGEST, VOCABULARY)
        longest = max(len(tokens) for tokens in self.tokenizer(examples.captions.texts).input_ids)
        self.tokenizer.model_max_length = min(longest, LONGEST)
        self.tokens = encode(self.tokenizer, examples.captions.texts)
        words = {"vocab_size": len(self.tokenizer), "max_position_embeddings": self.tokenizer.model_max_length}
        sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH}
        depth = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
        self.text = CLIPTextModel(CLIPTextConfig(**words, **sizes, **depth, **special_tokens(self.tokenizer)))
        self.norm = nn.LayerNorm(backbone.channels[-1])
        self.project_image = nn.Linear(backbone.channels[-1], WIDTH, bias=False)
        self.project_text = nn.Linear(WIDTH, WIDTH, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def pair(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B,3,H,W) and tokens (B,L) of the pairs ``batch``."""
        captions = self.examples.captions
        return self.pixels(captions.image_of[batch]), self.tokens[captions.text_of[batch]].to(self.device)

    def logits(self, maps: list[Tensor], tokens: Tensor) -> Tensor:
        """Scaled cosine similarity (B,B) of images (rows) and captions (columns)."""
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
        maps = self.backbone(crops(images, self.examples.captions.size, AREAS, generator))
        return self.loss_of(batch, maps, tokens)

    def loss_of(self, batch: Tensor, maps: list[Tensor], tokens: Tensor) -> Tensor:
        """Loss of the maps of cropped images and of their captions."""
        return contrastive_loss(self.logits(maps, tokens), self.same(batch))

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Share of held-out images whose own caption scores best among those of a group, and that of chance."""
        pairs = self.candidates(held=True)
        # At most MATCHED pairs in a group, and groups of (almost) equal size: matching is easier in a smaller one.
        groups = [self._matched(part) for part in pairs.tensor_split(math.ceil(len(pairs) / MATCHED))]
        right, chance = (torch.cat(values).float().mean().item() for values in zip(*groups, strict=True))
        return {"matching_accuracy": right, "chance": chance}

    def _matched(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each image's best caption is its own (B,), and the share of captions that are (B,)."""
        images, tokens = self.pair(batch)
        best = self.logits(self.backbone(images), tokens).argmax(dim=1)
        own = self.same(batch)
        return own[torch.arange(len(batch)), best], own.float().mean(dim=1)


class CaptionContrast(Contrast):
    """Learn to match images with captions and to write the captions, after BLIP (Li et al. 2022; B4).

    A causal decoder continues the caption. BLIP's matching with hard negatives and its momentum encoder are left out.
    """

    def __init__(self, backbone: Backbone, examples: Examples, spec: BackboneSpec) -> None:
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

    def loss_of(self, batch: Tensor, maps: list[Tensor], tokens: Tensor) -> Tensor:
        """Sum of the contrast and of the mean cross-entropy over the captions' tokens."""
        predicted = self.next_tokens(maps, tokens).flatten(0, 1)
        answers = following(tokens, self.tokenizer.eos_token_id).flatten()
        words = F.cross_entropy(predicted, answers, ignore_index=IGNORED, label_smoothing=SMOOTHING)
        return super().loss_of(batch, maps, tokens) + words

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """CLIP's measure, and the share of held-out captions' tokens that are predicted from those before them."""
        images, tokens = self.pair(self.candidates(held=True))
        predicted = self.next_tokens(self.backbone(images), tokens).argmax(dim=2)
        answers = following(tokens, self.tokenizer.eos_token_id)
        right = (predicted == answers)[answers != IGNORED]
        return super().measure() | {"token_accuracy": right.float().mean().item()}


def following(tokens: Tensor, end: int) -> Tensor:
    """(B,L-1): the token after each but the last; IGNORED after the first ``end``, which also is the padding."""
    ended = (tokens[:, :-1] == end).cumsum(dim=1) > 0
    return tokens[:, 1:].masked_fill(ended, IGNORED)
