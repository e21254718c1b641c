"""LAVT (Yang et al. 2022): a Swin Transformer that takes an expression's words in at every stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer, BertModel, PreTrainedTokenizerBase
from transformers.utils import logging

from vpd.config.schema import LavtModel, Spec
from vpd.models.backbones import Backbone
from vpd.models.backbones.from_timm import SwinBackbone
from vpd.models.base import Batch, Features, Network
from vpd.models.baseline import load_spec_backbone
from vpd.models.heads import build_head
from vpd.models.pixel_words import WordFusion
from vpd.utils.errors import UserError

LANGUAGE = "language"


class Words(nn.Module):
    """BERT without its pooler, which only sees [CLS].

    Args:
        bert: the text encoder, trained with the rest of the network.
        tokenizer: its tokenizer.
        length: tokens that expressions are cut or padded to, [CLS] and [SEP] included.

    Raises:
        UserError: BERT takes fewer tokens.
    """

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

    def __init__(
        self, spec: LavtModel, *, backbone: SwinBackbone, language: Words, fusion: WordFusion, head: nn.Module
    ) -> None:
        super().__init__()
        self.spec, self.backbone, self.language, self.fusion, self.head = spec, backbone, language, fusion, head

    def features(self, batch: Batch) -> Features:
        """Fuse the stages' pixels with words, fine to coarse; attention to words is not recorded."""
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


def build_lavt(spec: Spec, checkpoint: Path) -> Lavt:
    """Build LAVT from a checkpoint folder with vision/ and language/.

    Raises:
        UserError: a folder is missing or damaged, or the backbone or the task does not fit LAVT.
    """
    backbone = load_spec_backbone(spec, checkpoint)
    with torch.random.fork_rng(devices=[]):
        bert, tokenizer = load_language(checkpoint)
    return compose_lavt(spec, backbone, bert, tokenizer)


def compose_lavt(spec: Spec, backbone: Backbone, bert: BertModel, tokenizer: Callable[..., Any]) -> Lavt:
    """Put LAVT together from its parts, on whatever device they are (``meta`` included).

    Args:
        spec: the experiment.
        backbone: a Swin Transformer.
        bert: the text encoder.
        tokenizer: of the text encoder.

    Raises:
        UserError: the task has no expressions, or the backbone is no Swin Transformer.
    """
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
    return Lavt(
        model,
        backbone=backbone,
        language=Words(bert, tokenizer, model.length),
        fusion=WordFusion(channels, width, model.fusion_heads, model.fusion_dropout),
        head=build_head(spec, channels, backbone.strides, classes=2),
    )


def load_language(checkpoint: Path) -> tuple[BertModel, PreTrainedTokenizerBase]:
    """Load BERT, in single precision, and its tokenizer from a checkpoint's folder language/.

    Raises:
        UserError: the folder is missing, incomplete or damaged.
    """
    folder = Path(checkpoint) / LANGUAGE
    if not folder.is_dir():
        raise UserError(f"{checkpoint} has no folder {LANGUAGE}/; choose a checkpoint with a text encoder")
    logging.disable_progress_bar()  # loading takes a moment; standard error is for the stage's own progress
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        loaded: Any = BertModel.from_pretrained(folder, add_pooling_layer=False, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{folder} is incomplete or damaged ({reason}); make or download this backbone again"
        ) from error
    bert, missing = loaded[0], loaded[1]["missing_keys"]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} tensors of its BERT, first '{min(missing)}'; "
            "make or download this backbone again"
        )
    return bert.float(), tokenizer
