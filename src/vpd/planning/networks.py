"""Networks and batches with random contents, for counting and timing: no checkpoint, no data, any device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vpd.config.schema import BackboneModel, BackboneSpec, DepthSpec, LavtModel, ReferringSpec, SegmentationSpec, Spec
from vpd.utils.files import read_json

Configs = dict[str, dict[str, Any]]
"""Configurations of ``unet``, ``vae`` and ``text_encoder``, as diffusers and transformers write them."""
Parts = Configs | BackboneSpec
"""What a network is made of: the configurations of a Stable Diffusion checkpoint, or a backbone."""
CLASSES = {"ade20k": 150, "nyuv2": 27, "refcoco": 0}
"""Classes of the real datasets by format: objectInfo150 of the scene parsing benchmark, and NYUv2's scenes (D4)."""
FORMATS = {"segmentation": "ade20k", "depth": "nyuv2", "referring": "refcoco"}


def read_parts(checkpoint: Path) -> Configs:
    """Read the networks' configurations from a diffusers pipeline folder; UserError if one is missing or damaged."""
    return {part: read_json(checkpoint / part / "config.json") for part in ("unet", "vae", "text_encoder")}


class _GivenTokens(nn.Module):
    """Fixed random token states in place of the frozen text encoder, which the paper's figures leave out."""

    states: Tensor

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("states", torch.randn(length, width))

    def forward(self, sentences: list[str]) -> Tensor:
        return self.states.expand(len(sentences), -1, -1)

    def pooled(self, sentences: list[str]) -> Tensor:
        return self.states[-1].expand(len(sentences), -1)


def _full_sentences(sentences: list[str], *, max_length: int, **_options: object) -> Any:
    """Stand in for BERT's tokenizer: every sentence has ``max_length`` equal tokens."""
    from transformers import BatchEncoding

    size = (len(sentences), max_length)
    tokens = {"input_ids": torch.zeros(size, dtype=torch.long), "attention_mask": torch.ones(size, dtype=torch.long)}
    return BatchEncoding(tokens)


def build(spec: Spec, parts: Parts, classes: int) -> nn.Module:
    """Build the network of an experiment with random weights on torch's default device (``meta`` included).

    Args:
        spec: the experiment.
        parts: configurations (VPD) or a backbone (baselines, LAVT).
        classes: number of the dataset's classes.
    """
    return _build_vpd(spec, parts, classes) if isinstance(parts, dict) else _build_baseline(spec, parts, classes)


def _build_vpd(spec: Spec, configs: Configs, classes: int) -> nn.Module:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from vpd.models.network import compose, vpd_model
    from vpd.models.prompts import FROM_IMAGES

    unet: Any = UNet2DConditionModel.from_config(configs["unet"])
    vae: Any = AutoencoderKL.from_config(configs["vae"])
    prompt, width = vpd_model(spec).prompt, unet.config.cross_attention_dim
    if prompt.strategy in FROM_IMAGES:
        return compose(spec, unet, vae, classes, text=_GivenTokens(prompt.length, width))
    rows = {"empty": 1, "empty-sequence": prompt.length}.get(prompt.strategy, classes)
    return compose(spec, unet, vae, classes, class_embeddings=torch.randn(rows, width))


def _build_baseline(spec: Spec, parts: BackboneSpec, classes: int) -> nn.Module:
    from vpd.models.backbones import build_backbone

    model, checkpointing = spec.model, spec.training.gradient_checkpointing
    assert isinstance(model, BackboneModel | LavtModel)
    backbone = build_backbone(parts.vision, drop_path=model.drop_path, gradient_checkpointing=checkpointing)
    if isinstance(model, BackboneModel):
        from vpd.models.baseline import compose_baseline

        return compose_baseline(spec, backbone, classes)
    from transformers import BertConfig, BertModel

    from vpd.models.lavt import compose_lavt

    assert parts.language is not None
    vocabulary = {} if parts.vocabulary is None else {"vocab_size": parts.vocabulary}
    bert = BertModel(BertConfig(**{**parts.language.options, **vocabulary}), add_pooling_layer=False)
    return compose_lavt(spec, backbone, bert, _full_sentences)


def crop(spec: Spec) -> int:
    """Side of the square training images in pixels."""
    if isinstance(spec, ReferringSpec):
        return spec.data.size
    assert isinstance(spec, SegmentationSpec | DepthSpec)
    return spec.data.crop


def make_batch(spec: Spec, images: int, classes: int) -> dict[str, Any]:
    """Make a training batch with random contents on torch's default device."""
    side = crop(spec)
    batch: dict[str, Any] = {"image": torch.rand(images, 3, side, side) * 2 - 1}
    if isinstance(spec, DepthSpec):
        depth = torch.rand(images, side, side) * (spec.data.max_depth - 0.1) + 0.1
        return batch | {"depth": depth, "class_id": torch.randint(0, classes, (images,))}
    values = 2 if isinstance(spec, ReferringSpec) else classes
    return batch | {"label": torch.randint(0, values, (images, side, side)), "text": [""] * images}
