"""LAVT (Yang et al. 2022): a Swin Transformer that takes an expression's words in at every stage.

Pixel maps are channels-last, as Swin's are. Where paper and released network differ, this is the network of the published
figures: GELU for ReLU in two projections, and a LayerNorm on what the head gets.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, BertModel, PreTrainedTokenizerBase
from transformers.utils import logging

from vpd.config.schema import LavtModel, Spec
from vpd.models.backbones import WEIGHTS, Backbone
from vpd.models.backbones.from_timm import SwinBackbone
from vpd.models.base import Batch, Features, Network, check_fit
from vpd.models.baseline import load_spec_backbone
from vpd.models.heads import build_head
from vpd.utils.errors import UserError

LANGUAGE = "language"
GATE_STD = 0.02  # of a gate's first weights, which all but close it


class PixelWordAttention(nn.Module):
    """Pixel-word attention module (PWAM, section 3.2): every pixel gathers the words that concern it.

    Pixels are queries, words are keys and values; the gathered words multiply the projected pixels. Queries and gathered
    words are normalised per image and channel over the pixels.
    """

    def __init__(self, channels: int, word_channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        # A bias would cancel: in the softmax over words (key) or in the norm that follows (query, gathered).
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(word_channels, channels, bias=False)
        self.value = nn.Linear(word_channels, channels)
        self.gathered = nn.Linear(channels, channels, bias=False)
        self.visual = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Dropout(dropout))
        self.mixed = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Dropout(dropout))

    def forward(self, x: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """Fuse pixels (batch, h, w, channels) with words (batch, length, word channels); ``mask``: false on padding."""
        pixels = x.flatten(1, 2)
        gathered = _instance_norm(self.gathered(self._attend(pixels, words, mask)))
        return self.mixed(self.visual(pixels) * gathered).unflatten(1, x.shape[1:3])

    def _attend(self, pixels: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        parts = [_instance_norm(self.query(pixels)), self.key(words), self.value(words)]
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        words_of = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        return words_of.transpose(1, 2).flatten(2)


class LanguageGate(nn.Sequential):
    """Language gate (section 3.3): per pixel and channel a factor in (-1, 1) of the words that the next stage sees."""

    def __init__(self, channels: int) -> None:
        first, second = (nn.Linear(channels, channels, bias=False) for _ in range(2))
        super().__init__(first, nn.ReLU(), second, nn.Tanh())
        for layer in (first, second):
            nn.init.trunc_normal_(layer.weight, std=GATE_STD)


class WordFusion(nn.Module):
    """Fusion behind each stage of the backbone; the last one has no gate, since no stage follows it."""

    def __init__(self, channels: list[int], word_channels: int, heads: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        _check_heads(channels, heads)
        self.attention = nn.ModuleList(
            PixelWordAttention(c, word_channels, h, dropout) for c, h in zip(channels, heads, strict=True)
        )
        self.gates = nn.ModuleList(LanguageGate(c) for c in channels[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in channels)

    def forward(self, level: int, x: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse the output (batch, h, w, channels) of the stage ``level`` with words (batch, length, word channels).

        Returns the head's map (batch, channels, h, w) and the next stage's input (batch, h, w, channels).
        """
        fused = self.attention[level](x, words, mask)
        if level < len(self.gates):
            x = x + self.gates[level](fused) * fused
        return self.norms[level](fused).permute(0, 3, 1, 2).contiguous(), x


def _instance_norm(x: Tensor) -> Tensor:
    return F.instance_norm(x.transpose(1, 2)).transpose(1, 2)


def _check_heads(channels: list[int], heads: tuple[int, ...]) -> None:
    if len(heads) != len(channels):
        raise UserError(f"model.fusion_heads has {len(heads)} numbers for {len(channels)} stages; give one per stage")
    for c, h in zip(channels, heads, strict=True):
        if c % h:
            raise UserError(f"model.fusion_heads has {h}, which does not divide a stage's {c} channels; use a divisor")


class Words(nn.Module):
    """BERT without its pooler, which only sees [CLS]; expressions are cut or padded to ``length`` tokens."""

    def __init__(self, bert: BertModel, tokenizer: Callable[..., Any], length: int) -> None:
        super().__init__()
        limit = bert.config.max_position_embeddings
        if length > limit:
            raise UserError(f"model.length is {length}, but the checkpoint's BERT takes at most {limit}; lower it")
        bert.pooler = None
        bert.set_attn_implementation("sdpa")
        self.bert, self.tokenizer, self.length, self.width = bert, tokenizer, length, bert.config.hidden_size

    def forward(self, sentences: list[str]) -> tuple[Tensor, Tensor]:
        """Return last hidden states (batch, length, width) and a mask (batch, length) that is false on padding."""
        options = {"padding": "max_length", "truncation": True, "max_length": self.length, "return_tensors": "pt"}
        tokens, device = self.tokenizer(sentences, **options), self.bert.device
        ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device).bool()
        # A mask of four axes is taken as it is; with two, transformers first looks at its contents, and meta has none.
        return self.bert(input_ids=ids, attention_mask=mask[:, None, None]).last_hidden_state, mask


class Lavt(Network):
    """Stages of a Swin Transformer with word fusion between them, BERT, and a decoder head; all of it is trained."""

    def __init__(self, spec: Spec, backbone: Backbone, bert: BertModel, tokenizer: Callable[..., Any]) -> None:
        super().__init__()
        model = spec.model
        assert isinstance(model, LavtModel)
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
        self.backbone, self.language = backbone, Words(bert, tokenizer, model.length)
        self.fusion = WordFusion(channels, width, model.fusion_heads, model.fusion_dropout)
        self.head = build_head(spec, channels, backbone.strides, classes=2)

    def features(self, batch: Batch) -> Features:
        """Fuse the stages' pixels with words, fine to coarse; attention to words is not recorded."""
        images, network = batch["image"], self.backbone.network
        height, width = images.shape[-2:]
        if max(height, width) <= self.backbone.strides[-1]:
            raise UserError(
                f"an image of {height}x{width} pixels is a single pixel at LAVT's coarsest stage, which cannot be "
                f"normalised; make a side longer than {self.backbone.strides[-1]} (data.size, evaluation.size)"
            )
        words, mask = self.language(batch["text"])
        x, maps = network.patch_embed(self.backbone.prepare(images)), []
        for level, stage in enumerate(network.layers):
            fused, x = self.fusion(level, stage(x), words, mask)
            maps.append(fused)
        return Features(maps, list(self.backbone.strides), [None] * len(maps))


def build_lavt(spec: Spec, checkpoint: Path) -> Lavt:
    """Build LAVT from vision/ and language/; UserError if one is missing or damaged, or does not fit."""
    backbone = load_spec_backbone(spec, checkpoint)
    with torch.random.fork_rng(devices=[]):
        bert, tokenizer = load_language(checkpoint)
    return Lavt(spec, backbone, bert, tokenizer)


def load_language(checkpoint: Path) -> tuple[BertModel, PreTrainedTokenizerBase]:
    """Load BERT, in single precision, and its tokenizer; UserError if language/ is missing, incomplete or damaged."""
    folder = Path(checkpoint) / LANGUAGE
    if not folder.is_dir():
        raise UserError(f"{checkpoint} has no folder {LANGUAGE}/; choose a checkpoint with a text encoder")
    logging.disable_progress_bar()  # loading takes a moment; standard error is for the stage's own progress
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        bert = BertModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True, use_safetensors=True)
        given = {n: x for n, x in load_file(folder / WEIGHTS).items() if not n.startswith("pooler.")}
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{folder} is incomplete or damaged ({reason}); make or download it again") from error
    # transformers draws a missing tensor at random and passes over others.
    check_fit(bert.state_dict(), given, f"{folder} holds no whole BERT", "make or download it again")
    return bert.float(), tokenizer
