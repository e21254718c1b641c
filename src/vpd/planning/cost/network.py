"""A network and a batch with random contents, for counting and timing: no checkpoint, no data, any device."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import BatchEncoding, BertConfig, BertModel

from vpd.config.schema import BackboneSpec, DepthSpec, ReferringSpec, SegmentationSpec, Spec
from vpd.models.compose import compose
from vpd.models.network import VPD
from vpd.models.prompts import FROM_IMAGES
from vpd.utils.files import read_json

Parts = dict[str, dict] | BackboneSpec
"""What a network is made of: configurations of unet, vae and text_encoder, or a backbone."""
NETWORKS = ("unet", "vae", "text_encoder")
CLASSES = {"ade20k": 150, "nyuv2": 27, "refcoco": 0}
"""Classes of the real datasets by format: objectInfo150 of the scene parsing benchmark, and NYUv2's scenes (D4)."""
LAYOUTS = {"segmentation": "ade20k", "depth": "nyuv2", "referring": "refcoco"}


def read_parts(checkpoint: Path) -> dict[str, dict]:
    """Configurations of the networks in a diffusers pipeline folder; UserError if one is missing or damaged."""
    return {part: read_json(checkpoint / part / "config.json") for part in NETWORKS}


class GivenTokens(nn.Module):
    """Stands for the frozen text encoder, which is no part of what the paper counts: fixed random token states."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("states", torch.randn(length, width))

    def forward(self, sentences: list[str]) -> Tensor:
        """States (sentences, length, width)."""
        return self.states.expand(len(sentences), -1, -1)

    def pooled(self, sentences: list[str]) -> Tensor:
        """States (sentences, width)."""
        return self.states[-1].expand(len(sentences), -1)


class GivenWords:
    """Stands for BERT's tokenizer: every expression has as many tokens as fit, the same one throughout."""

    def __call__(self, sentences: list[str], *, max_length: int, **_options: object) -> BatchEncoding:
        """Tokens (sentences, max_length), none of them padding."""
        size = (len(sentences), max_length)
        tokens = {
            "input_ids": torch.zeros(size, dtype=torch.long),
            "attention_mask": torch.ones(size, dtype=torch.long),
        }
        return BatchEncoding(tokens)


def build(spec: Spec, parts: Parts, classes: int) -> nn.Module:
    """The network of ``spec`` with random weights, on torch's default device."""
    return {"vpd": _build_vpd, "backbone": _build_baseline, "lavt": _build_lavt}[spec.model.kind](spec, parts, classes)


def _build_vpd(spec: Spec, parts: dict[str, dict], classes: int) -> VPD:
    unet = UNet2DConditionModel.from_config(parts["unet"])
    vae = AutoencoderKL.from_config(parts["vae"])
    prompt, width = spec.model.prompt, unet.config.cross_attention_dim
    if prompt.strategy in FROM_IMAGES:
        return compose(spec, unet, vae, classes, text=GivenTokens(prompt.length, width))
    rows = {"empty": 1, "empty-sequence": prompt.length}.get(prompt.strategy, classes)
    return compose(spec, unet, vae, classes, class_embeddings=torch.randn(rows, width))


def _build_baseline(spec: Spec, parts: BackboneSpec, classes: int) -> nn.Module:
    from vpd.models.baseline import compose_baseline

    return compose_baseline(spec, _backbone(spec, parts), classes)


def _build_lavt(spec: Spec, parts: BackboneSpec, classes: int) -> nn.Module:
    from vpd.models.lavt import compose_lavt

    known = {} if parts.vocabulary is None else {"vocab_size": parts.vocabulary}
    bert = BertModel(BertConfig(**parts.language.options, **known), add_pooling_layer=False)
    return compose_lavt(spec, _backbone(spec, parts), bert, GivenWords())


def _backbone(spec: Spec, parts: BackboneSpec) -> nn.Module:
    from vpd.models.backbones import build_backbone

    checkpointing = spec.training.gradient_checkpointing
    return build_backbone(parts.vision, drop_path=spec.model.drop_path, gradient_checkpointing=checkpointing)


def crop(spec: Spec) -> int:
    """Side of the square training images in pixels."""
    return spec.data.size if isinstance(spec, ReferringSpec) else spec.data.crop


def make_batch(spec: Spec, images: int, classes: int) -> dict:
    """A training batch of ``spec`` with random contents, on torch's default device."""
    side = crop(spec)
    batch = {"image": torch.rand(images, 3, side, side) * 2 - 1}
    match spec:
        case SegmentationSpec():
            return batch | {"label": torch.randint(0, classes, (images, side, side))}
        case ReferringSpec():
            return batch | {"label": torch.randint(0, 2, (images, side, side)), "text": [""] * images}
        case DepthSpec():
            depth = torch.rand(images, side, side) * (spec.data.max_depth - 0.1) + 0.1
            return batch | {"depth": depth, "class_id": torch.randint(0, classes, (images,))}
