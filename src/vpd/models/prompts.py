"""Conditioning text: prompts, the frozen CLIP text encoder and the text adapter."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging

from vpd.config.schema import AdapterSpec, PromptSpec
from vpd.models.diffusion import component
from vpd.models.features import LatentCache
from vpd.utils.errors import UserError
from vpd.utils.progress import track

SENTENCE_CACHE_BYTES = 1 << 30
SENTENCES_WORTH_A_BAR = 500


class TextEncoder(nn.Module):
    """A checkpoint's frozen CLIP text model and tokenizer; sentences are cut or padded to ``length`` tokens."""

    def __init__(self, checkpoint: Path, length: int) -> None:
        super().__init__()
        logging.disable_progress_bar()  # Loading takes a moment; standard error is for the stage's own progress.
        self.tokenizer = CLIPTokenizer.from_pretrained(component(checkpoint, "tokenizer"), local_files_only=True)
        folder = component(checkpoint, "text_encoder")
        self.model = CLIPTextModel.from_pretrained(folder, local_files_only=True).float()
        self.length, self.cache = length, LatentCache(SENTENCE_CACHE_BYTES)
        self.width = self.model.config.hidden_size
        self.requires_grad_(False)
        self.eval()
        limit = self.model.config.max_position_embeddings
        if length > limit:
            raise UserError(
                f"model.prompt.length is {length}, but the text model in {folder} takes at most {limit}; lower it"
            )

    def train(self, mode: bool = True) -> TextEncoder:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, sentences: list[str]) -> Tensor:
        """All tokens of each sentence after the final norm, unmasked padding included: (batch, length, width) (R4)."""
        device = self.model.device
        tokens = [self.cache.get(s, lambda s=s: self._states([s], "max_length")[0]) for s in sentences]
        return torch.cat([states.to(device) for states in tokens])

    def pooled(self, sentences: list[str]) -> Tensor:
        """The [EOS] token of each sentence after the final norm: (sentences, width) (S5)."""
        states, ids = self._states(sentences, "longest")
        first = (ids == self.tokenizer.eos_token_id).int().argmax(dim=1)
        return states[torch.arange(len(ids)), first]

    @torch.no_grad()
    def _states(self, sentences: list[str], padding: str) -> tuple[Tensor, Tensor]:
        options = {"padding": padding, "truncation": True, "max_length": self.length}
        ids = self.tokenizer(sentences, **options, return_tensors="pt").input_ids.to(self.model.device)
        return self.model(input_ids=ids).last_hidden_state, ids


class TextAdapter(nn.Module):
    """``c + gamma * MLP(c)`` with one gamma per channel, or a single one (S11)."""

    def __init__(self, width: int, spec: AdapterSpec) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.gamma = nn.Parameter(torch.full((width if spec.factor == "vector" else 1,), spec.gamma))

    def forward(self, context: Tensor) -> Tensor:
        """Refine (batch, tokens, width)."""
        return context + self.gamma * self.fc(context)


@cache
def imagenet_templates() -> tuple[str, ...]:
    """The 80 prompts that CLIP's authors average for ImageNet."""
    text = resources.files("vpd.models").joinpath("templates.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


TEMPLATES = {"single": lambda: ("a photo of a {}",), "imagenet-80": imagenet_templates}


def encode_prompts(spec: PromptSpec, text: TextEncoder, classes: list[str]) -> Tensor:
    """Encode a fixed prompt set once: token(s) of the empty prompt, or one token per class (mean over templates).

    Returns (tokens or classes, width); UserError if the strategy needs classes and there are none.
    """
    if spec.strategy == "empty":
        return text.pooled([""])
    if spec.strategy == "empty-sequence":
        return text([""])[0]
    if not classes:
        raise UserError(
            f"model.prompt.strategy is '{spec.strategy}', but the dataset has no classes; use 'empty' or 'expression'"
        )
    templates = TEMPLATES[spec.templates]()
    names = [name.replace("_", " ") for name in classes]
    if len(names) * len(templates) > SENTENCES_WORTH_A_BAR:
        names = track(names, len(classes), "encode prompts", "class")
    return torch.stack([text.pooled([t.format(name) for t in templates]).mean(0) for name in names])


def all_tokens(model: nn.Module, batch: dict) -> Tensor:
    """The same tokens for every image: (batch, classes or 1, width)."""
    return model.class_embeddings.expand(len(batch["image"]), -1, -1)


def scene_token(model: nn.Module, batch: dict) -> Tensor:
    """The token of each image's scene class, or their mean where ``class_id`` is -1 (D4): (batch, 1, width)."""
    table = model.class_embeddings
    with_mean = torch.cat([table, table.mean(0, keepdim=True)])
    return with_mean[batch["class_id"].to(table.device)][:, None]


def expression_tokens(model: nn.Module, batch: dict) -> Tensor:
    """All tokens of each image's expression: (batch, length, width)."""
    return model.text(batch["text"])


def expression_token(model: nn.Module, batch: dict) -> Tensor:
    """The [EOS] token of each image's expression: (batch, 1, width)."""
    return model.text.pooled(batch["text"])[:, None]


STRATEGIES = {
    "empty": all_tokens,
    "empty-sequence": all_tokens,
    "class-names": all_tokens,
    "scene": scene_token,
    "expression": expression_tokens,
    "expression-pooled": expression_token,
}
FROM_IMAGES = ("expression", "expression-pooled")
"""Strategies whose text comes with each image, so that the text encoder stays in the network."""


def token_count(spec: PromptSpec, classes: int) -> int:
    """Tokens that the U-Net attends to, which is also the number of recorded maps per level."""
    return {"class-names": classes, "expression": spec.length, "empty-sequence": spec.length}.get(spec.strategy, 1)
