"""A small CLIP (Radford et al. 2021): architecture and contrastive training; only its text tower serves Stable Diffusion."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from vpd.config.schema import TextSpec
from vpd.pretraining.captions import Captions
from vpd.pretraining.clip import MATCHED, contrastive_loss, encode
from vpd.pretraining.loop import Phase, initialised_by, rise_and_fall
from vpd.pretraining.workdir import Workdir


def build_clip(spec: TextSpec, tokenizer: CLIPTokenizer, size: tuple[int, int]) -> CLIPModel:
    """Build a fresh CLIPModel whose two towers have the same width, depth and heads."""
    tower = {
        "hidden_size": spec.width,
        "intermediate_size": 4 * spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
    }
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    text = {**tower, **special, "vocab_size": len(tokenizer), "max_position_embeddings": spec.length}
    vision = {**tower, "image_size": max(size), "patch_size": spec.patch_size}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=spec.width))


def train_clip(
    spec: TextSpec, tokenizer: CLIPTokenizer, captions: Captions, workdir: Workdir
) -> tuple[CLIPModel, list[float]]:
    """Train on (image, caption) pairs and return the model with the loss of every step."""
    with initialised_by(workdir.seed, "text"):
        model = build_clip(spec, tokenizer, captions.size)
    tokens = encode(tokenizer, captions.texts)

    def loss_of(generator: Generator) -> Tensor:
        pair = torch.randperm(len(captions.text_of), generator=generator)[: spec.batch_size]
        text = captions.text_of[pair]
        logits = _logits(model, captions.pixels(captions.image_of[pair]), tokens[text], workdir.device)
        return contrastive_loss(logits, (text[:, None] == text[None]).to(workdir.device))

    phase = Phase("text", "pretraining.text", model, spec.steps, spec.lr, rise_and_fall(spec.steps))
    return model, phase.train(workdir, loss_of)


def _logits(model: CLIPModel, images: Tensor, tokens: Tensor, device: torch.device) -> Tensor:
    """Scaled cosine similarity (B,B) of images (rows) and captions (columns)."""
    # No attention mask, because Stable Diffusion passes none: padding follows [EOS], which therefore cannot attend to it.
    output = model(input_ids=tokens.to(device), pixel_values=images.to(device), interpolate_pos_encoding=True)
    return output.logits_per_image


@torch.no_grad()
def matching_accuracy(model: CLIPModel, tokenizer: CLIPTokenizer, captions: Captions, device: torch.device) -> float:
    """Share of the first MATCHED pairs whose own caption scores best for the image among all captions of these pairs."""
    text = captions.text_of[:MATCHED]
    tokens = encode(tokenizer, [captions.texts[index] for index in text])
    best = _logits(model, captions.pixels(captions.image_of[:MATCHED]), tokens, device).argmax(dim=1).cpu()
    return (text[best] == text).float().mean().item()


def text_tower(model: CLIPModel) -> CLIPTextModel:
    """The text tower as a model of its own, as ``StableDiffusionPipeline`` expects it, on the CPU."""
    with torch.random.fork_rng(devices=[]):  # its initial weights are overwritten, but would draw from the global state
        tower = CLIPTextModel(model.config.text_config)
    tower.load_state_dict(model.text_model.state_dict())
    return tower.cpu().eval()


@torch.no_grad()
def encode_texts(text: CLIPTextModel, tokens: Tensor, chunk: int = 256) -> Tensor:
    """Final hidden states (T,L,C) of token numbers (T,L), computed ``chunk`` texts at a time."""
    return torch.cat([text(part).last_hidden_state for part in tokens.split(chunk)])
