"""A small CLIP: architecture and contrastive training; only its text tower serves Stable Diffusion."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from vpd.config.schema import TextSpec
from vpd.pretraining.captions import Captions
from vpd.pretraining.clip import encode
from vpd.pretraining.loop import Phase, initialised_by, rise_and_fall
from vpd.pretraining.workdir import Workplace

MATCHED = 64
"""Pairs that compete in ``matching_accuracy``."""


def build_clip(spec: TextSpec, tokenizer: CLIPTokenizer, size: tuple[int, int]) -> CLIPModel:
    """A fresh CLIPModel whose two towers have the same width, depth and heads."""
    tower = {
        "hidden_size": spec.width,
        "intermediate_size": 4 * spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
    }
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {**tower, **special, "vocab_size": len(tokenizer), "max_position_embeddings": spec.length}
    vision = {**tower, "image_size": max(size), "patch_size": spec.patch_size}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=spec.width)
    return CLIPModel(config)


def contrastive_loss(logits: Tensor, same: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy of (B,B) image-text logits.

    Where captions repeat within a batch (``same``, (B,B) bool), all equal captions are right answers with equal shares.
    """
    share = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, share) + F.cross_entropy(logits.T, share)) / 2


def train_clip(
    spec: TextSpec, tokenizer: CLIPTokenizer, captions: Captions, place: Workplace
) -> tuple[CLIPModel, list[float]]:
    """Train on (image, caption) pairs and return the model with its losses."""
    with initialised_by(place.seed, "text"):
        model = build_clip(spec, tokenizer, captions.size)
    tokens = encode(tokenizer, captions.texts)

    def loss_of(generator: Generator) -> Tensor:
        pair = torch.randperm(len(captions.text_of), generator=generator)[: spec.batch_size]
        text = captions.text_of[pair]
        logits = _logits(model, captions.pixels(captions.image_of[pair]), tokens[text], place)
        return contrastive_loss(logits, (text[:, None] == text[None]).to(place.device))

    phase = Phase("text", "pretraining.text", model, spec.steps, spec.lr, rise_and_fall(spec.steps))
    return model, phase.train(place, loss_of)


def _logits(model: CLIPModel, images: Tensor, tokens: Tensor, place: Workplace) -> Tensor:
    """Scaled cosine similarity of images (rows) and captions (columns).

    No attention mask is given, because Stable Diffusion gives none: padding comes after [EOS] and cannot be seen by it.
    """
    output = model(
        input_ids=tokens.to(place.device), pixel_values=images.to(place.device), interpolate_pos_encoding=True
    )
    return output.logits_per_image


@torch.no_grad()
def matching_accuracy(model: CLIPModel, tokenizer: CLIPTokenizer, captions: Captions, place: Workplace) -> float:
    """Share of the first pairs whose own caption scores best for the image among all captions of these pairs."""
    text = captions.text_of[:MATCHED]
    tokens = encode(tokenizer, [captions.texts[index] for index in text])
    best = _logits(model, captions.pixels(captions.image_of[:MATCHED]), tokens, place).argmax(dim=1).cpu()
    return (text[best] == text).float().mean().item()


def text_tower(model: CLIPModel) -> CLIPTextModel:
    """The text tower as a model of its own, in the form ``StableDiffusionPipeline`` expects, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        tower = CLIPTextModel(model.config.text_config)
    tower.load_state_dict(model.text_model.state_dict())
    return tower.cpu().eval()
