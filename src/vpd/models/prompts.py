"""Conditioning text: prompts, the frozen CLIP text encoder and the text adapter."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging

from vpd.config.schema import AdapterSpec, PromptSpec
from vpd.models.base import Batch, LatentCache
from vpd.models.diffusion import component
from vpd.utils.errors import UserError
from vpd.utils.progress import track
from vpd.utils.tensors import load_folder

SENTENCE_CACHE_BYTES = 1 << 30
SENTENCES_WORTH_A_BAR = 500


class TextEncoder(nn.Module):
    """The CLIP text model and tokenizer of a diffusers pipeline, never trained.

    Sentences have ``length`` tokens, by default as many as the pipeline itself uses.
    """

    def __init__(self, tokenizer: Any, model: Any, length: int | None = None) -> None:
        super().__init__()
        self.tokenizer, self.model = tokenizer, model
        self.length = length or min(model.config.max_position_embeddings, tokenizer.model_max_length)
        self.cache, self.width = LatentCache(SENTENCE_CACHE_BYTES), model.config.hidden_size

    def train(self, mode: bool = True) -> TextEncoder:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, sentences: list[str]) -> Tensor:
        """Encode sentences to all their tokens (batch, length, width) after the final norm, padding included (R4)."""
        tokens = [self.cache.get(sentence, partial(self._padded, sentence)) for sentence in sentences]
        return torch.cat([states.to(self.model.device) for states in tokens])

    def _padded(self, sentence: str) -> Tensor:
        return self._states([sentence], "max_length")[0]

    def pooled(self, sentences: list[str]) -> Tensor:
        """Encode each sentence to its [EOS] token (sentences, width) after the final norm (S5)."""
        states, ids = self._states(sentences, "longest")
        first = (ids == self.tokenizer.eos_token_id).int().argmax(dim=1)
        return states[torch.arange(len(ids)), first]

    @torch.no_grad()
    def _states(self, sentences: list[str], padding: str) -> tuple[Tensor, Tensor]:
        options = {"padding": padding, "truncation": True, "max_length": self.length}
        ids = self.tokenizer(sentences, **options, return_tensors="pt").input_ids.to(self.model.device)
        return self.model(input_ids=ids).last_hidden_state, ids


def load_text_encoder(checkpoint: Path, length: int | None = None) -> TextEncoder:
    """Load the frozen text encoder of a diffusers pipeline folder in single precision.

    Args:
        checkpoint: the pipeline's folder.
        length: tokens of a sentence.

    Raises:
        UserError: a part is missing or damaged, or takes fewer tokens than ``length``.
    """
    logging.disable_progress_bar()  # loading takes a moment; standard error is for the stage's own progress
    tokens, folder = component(checkpoint, "tokenizer"), component(checkpoint, "text_encoder")
    with load_folder(tokens):
        tokenizer = CLIPTokenizer.from_pretrained(tokens, local_files_only=True)
    with load_folder(folder):
        model = CLIPTextModel.from_pretrained(folder, local_files_only=True).float()
    encoder, limit = TextEncoder(tokenizer, model, length), model.config.max_position_embeddings
    if encoder.length > limit:
        raise UserError(
            f"model.prompt.length is {length}, but the text model in {folder} takes at most {limit}; lower it"
        )
    return encoder.requires_grad_(False).eval()


class TextAdapter(nn.Module):
    """``c + gamma * MLP(c)`` with one gamma per channel, or a single one (S11)."""

    def __init__(self, width: int, spec: AdapterSpec) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.gamma = nn.Parameter(torch.full((width if spec.factor == "vector" else 1,), spec.gamma))

    def forward(self, context: Tensor) -> Tensor:
        """Refine (batch, tokens, width)."""
        return context + self.gamma * self.fc(context)


def imagenet_templates() -> list[str]:
    """Return the 80 prompts that CLIP's authors average for ImageNet (D5)."""
    return resources.files("vpd.models").joinpath("templates.txt").read_text(encoding="utf-8").splitlines()


def encode_prompts(spec: PromptSpec, text: TextEncoder, classes: list[str]) -> Tensor:
    """Encode the prompts that are the same for every image; UserError if they need classes and there are none.

    Returns (tokens, width): the empty prompt's token or tokens (S8), or one token per class, the mean over templates (S5, G3).
    """
    if spec.strategy == "empty":
        return text.pooled([""])
    if spec.strategy == "empty-sequence":
        return text([""])[0]
    if not classes:
        raise UserError(
            f"model.prompt.strategy is '{spec.strategy}', but the dataset has no classes; use 'empty' or 'expression'"
        )
    templates = imagenet_templates() if spec.templates == "imagenet-80" else ["a photo of a {}"]
    names: Iterable[str] = [name.replace("_", " ") for name in classes]
    if len(classes) * len(templates) > SENTENCES_WORTH_A_BAR:
        names = track(names, len(classes), "encode prompts", "class")
    return torch.stack([text.pooled([t.format(name) for t in templates]).mean(0) for name in names])


FROM_IMAGES = ("expression", "expression-pooled")
"""Strategies whose text comes with each image, so that the text encoder stays in the network."""


def context_of(strategy: str, batch: Batch, text: Any, embeddings: Tensor | None) -> Tensor:
    """Return the text tokens (batch, tokens, width) that each image attends to.

    They are the expression's tokens (R4) or its [EOS] token, which ``text`` encodes; or of ``embeddings`` (tokens, width)
    the token of the image's scene class (D4; their mean where ``class_id`` is -1), or all tokens for every image.
    """
    if text is not None:
        return text(batch["text"]) if strategy == "expression" else text.pooled(batch["text"])[:, None]
    assert embeddings is not None
    if strategy == "scene":
        with_mean = torch.cat([embeddings, embeddings.mean(0, keepdim=True)])
        return with_mean[batch["class_id"].to(embeddings.device)][:, None]
    return embeddings.expand(len(batch["image"]), -1, -1)


def token_count(spec: PromptSpec, classes: int) -> int:
    """Return the number of tokens that the U-Net attends to, which is that of the recorded maps per level, too."""
    return {"class-names": classes, "expression": spec.length, "empty-sequence": spec.length}.get(spec.strategy, 1)
