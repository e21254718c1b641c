"""Conditioning text: prompts, the frozen CLIP text encoder and the text adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
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

    projection_width = 0  # of what ``projected`` returns; one text model projects nothing

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
        return self._each("tokens", sentences, self._padded)

    def pooled(self, sentences: list[str]) -> Tensor:
        """Encode each sentence to its [EOS] token (sentences, width) after the final norm (S5)."""
        states, ids = self._states(sentences, "longest")
        first = (ids == self.tokenizer.eos_token_id).int().argmax(dim=1)
        return states[torch.arange(len(ids)), first]

    def projected(self, sentences: list[str]) -> Tensor | None:
        """Project each sentence as a whole (sentences, projection width), where a U-Net is told that; else None."""
        return None

    def _each(self, kind: str, sentences: list[str], encode: Callable[[str], Tensor]) -> Tensor:
        """Encode each sentence alone, and once."""
        found = [self.cache.get((kind, sentence), partial(encode, sentence)) for sentence in sentences]
        return torch.cat([x.to(self.model.device) for x in found])

    def _padded(self, sentence: str) -> Tensor:
        return self._states([sentence], "max_length")[0]

    @torch.no_grad()
    def _states(self, sentences: list[str], padding: str) -> tuple[Tensor, Tensor]:
        ids = self._ids(self.tokenizer, sentences, padding)
        return self.model(input_ids=ids).last_hidden_state, ids

    def _ids(self, tokenizer: Any, sentences: list[str], padding: str) -> Tensor:
        options = {"padding": padding, "truncation": True, "max_length": self.length}
        return tokenizer(sentences, **options, return_tensors="pt").input_ids.to(self.model.device)


class TwoTextEncoders(TextEncoder):
    """SDXL's two text models side by side, whose states are those before the last layer, and a projection of the second (U2).

    UserError if their tokenizers differ in more than their padding.
    """

    def __init__(self, tokenizers: Sequence[Any], models: Sequence[Any], length: int | None = None) -> None:
        super().__init__(tokenizers[0], models[0], length)
        self.second_tokenizer, self.second = tokenizers[1], models[1]
        if self.second_tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise UserError("the two tokenizers number words differently; use parts of one pipeline")
        self.width += self.second.config.hidden_size
        self.projection_width = self.second.config.projection_dim

    def projected(self, sentences: list[str]) -> Tensor | None:
        """Project each sentence's [EOS] token of the second model (sentences, projection width)."""
        return self._each("projection", sentences, self._projected)

    @torch.no_grad()
    def _projected(self, sentence: str) -> Tensor:
        return self.second(input_ids=self._ids(self.second_tokenizer, [sentence], "max_length")).text_embeds

    @torch.no_grad()
    def _states(self, sentences: list[str], padding: str) -> tuple[Tensor, Tensor]:
        pairs = (self.tokenizer, self.model), (self.second_tokenizer, self.second)
        ids = [self._ids(tokenizer, sentences, padding) for tokenizer, _ in pairs]  # each pads with a token of its own
        found = [model(input_ids=own, output_hidden_states=True) for own, (_, model) in zip(ids, pairs, strict=True)]
        return torch.cat([states.hidden_states[-2] for states in found], dim=-1), ids[0]


def load_text_encoder(checkpoint: Path, length: int | None = None) -> TextEncoder:
    """Load the frozen text encoder of a diffusers pipeline folder in single precision, or both if it has two.

    Args:
        checkpoint: the pipeline's folder.
        length: tokens of a sentence.

    Raises:
        UserError: a part is missing or damaged, or takes fewer tokens than ``length``.
    """
    logging.disable_progress_bar()  # loading takes a moment; standard error is for the stage's own progress
    tokenizer, model = _load(checkpoint, "", CLIPTextModel)
    if (checkpoint / "text_encoder_2").is_dir():
        tokenizers, models = zip((tokenizer, model), _load(checkpoint, "_2", CLIPTextModelWithProjection), strict=True)
        encoder: TextEncoder = TwoTextEncoders(tokenizers, models, length)
    else:
        encoder = TextEncoder(tokenizer, model, length)
    if encoder.length > (limit := model.config.max_position_embeddings):
        folder = checkpoint / "text_encoder"
        raise UserError(
            f"model.prompt.length is {length}, but the text model in {folder} takes at most {limit}; lower it"
        )
    return encoder.requires_grad_(False).eval()


def _load(checkpoint: Path, ending: str, model: Any) -> tuple[Any, Any]:
    """Load a tokenizer and a text model of a pipeline folder, whose names have an ``ending``."""
    tokens, folder = component(checkpoint, f"tokenizer{ending}"), component(checkpoint, f"text_encoder{ending}")
    with load_folder(tokens):
        tokenizer = CLIPTokenizer.from_pretrained(tokens, local_files_only=True)
    with load_folder(folder):
        return tokenizer, model.from_pretrained(folder, local_files_only=True).float()


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
    """Project the same prompts (prompts, projection width), each the mean over templates; None if nothing is projected (U2)."""
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
    """Return the projected text of each image (batch, width), or None if nothing is projected.

    Like ``context_of``; where an image attends to the tokens of several prompts, it is the mean of their projections (U2).
    """
    if text is not None:
        return text.projected(batch["text"])
    if projections is None or strategy == "scene":
        return None if projections is None else _of_scenes(batch, projections)
    return projections.mean(0).expand(len(batch["image"]), -1)


def _of_scenes(batch: Batch, rows: Tensor) -> Tensor:
    """Return the row of each image's scene class, or the mean of all where that is -1."""
    with_mean = torch.cat([rows, rows.mean(0, keepdim=True)])
    return with_mean[batch["class_id"].to(rows.device)]


def token_count(spec: PromptSpec, classes: int) -> int:
    """Return the number of tokens that the U-Net attends to, which is that of the recorded maps per level, too."""
    return {"class-names": classes, "expression": spec.length, "empty-sequence": spec.length}.get(spec.strategy, 1)
