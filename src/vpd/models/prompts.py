"""Conditioning text: prompts and the text adapter."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn

from vpd.config.schema import AdapterSpec, PromptSpec
from vpd.models.base import Batch
from vpd.models.text import TextEncoder
from vpd.utils.errors import UserError
from vpd.utils.progress import track

SENTENCES_WORTH_A_BAR = 500


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
    if spec.strategy == "empty-sequence":
        return text([""])[0]
    return torch.stack([text.pooled(prompts).mean(0) for prompts in _prompts(spec, classes)])


def project_prompts(spec: PromptSpec, text: TextEncoder, classes: list[str]) -> Tensor | None:
    """Project the same prompts (prompts, projection width), each the mean over templates; None if nothing is projected (U2).

    Of ``empty-sequence`` it is all that a network is told besides tokens, also a mask (U7).
    """
    if spec.strategy == "empty-sequence":
        return text.projected([""])
    if not text.projection_width:
        return None
    return torch.stack([torch.as_tensor(text.projected(prompts)).mean(0) for prompts in _prompts(spec, classes)])


def _prompts(spec: PromptSpec, classes: list[str]) -> Iterable[list[str]]:
    """Return the empty prompt, or the prompts of each class; UserError if there are no classes."""
    if spec.strategy in ("empty", "empty-sequence"):
        return [[""]]
    if not classes:
        raise UserError(
            f"model.prompt.strategy is '{spec.strategy}', but the dataset has no classes; use 'empty' or 'expression'"
        )
    templates = imagenet_templates() if spec.templates == "imagenet-80" else ["a photo of a {}"]
    prompts: Iterable[list[str]] = [[t.format(name.replace("_", " ")) for t in templates] for name in classes]
    if len(classes) * len(templates) > SENTENCES_WORTH_A_BAR:
        prompts = track(prompts, len(classes), "encode prompts", "class")
    return prompts


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
        return _of_scenes(batch, embeddings)[:, None]
    return embeddings.expand(len(batch["image"]), -1, -1)


def projection_of(strategy: str, batch: Batch, text: Any, projections: Tensor | None) -> Tensor | None:
    """Return what the network is told of each image's text besides tokens, as its projection (batch, width); None if nothing.

    Like ``context_of``; where an image attends to the tokens of several prompts, it is the mean of their projections (U2).
    """
    if text is not None:
        # A mask is of all tokens of a sentence, and says nothing about a single one.
        return text.projected(batch["text"]) if strategy == "expression" or text.projection_width else None
    if projections is None or strategy == "scene":
        return None if projections is None else _of_scenes(batch, projections)
    return projections.mean(0).expand(len(batch["image"]), -1)


def _of_scenes(batch: Batch, rows: Tensor) -> Tensor:
    """Return the row of each image's scene class, or the mean of all where that is -1."""
    with_mean = torch.cat([rows, rows.mean(0, keepdim=True)])
    return with_mean[batch["class_id"].to(rows.device)]


def token_count(strategy: str, classes: int, text: Any, embeddings: Tensor | None) -> int:
    """Return the number of tokens that an image attends to, which is that of the recorded maps per level, too.

    The arguments are those of ``context_of``, and the number of classes.
    """
    if strategy == "empty-sequence" and embeddings is not None:
        return len(embeddings)
    return {"class-names": classes, "expression": getattr(text, "tokens", 0)}.get(strategy, 1)
