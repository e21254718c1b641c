"""The frozen text encoders of pipelines: sentences to tokens, and to what a network is told besides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from string import punctuation
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel
from transformers.utils import logging

from vpd.models.base import LatentCache
from vpd.models.diffusion import TRANSFORMER, component, token_width
from vpd.utils.errors import UserError
from vpd.utils.files import read_json
from vpd.utils.tensors import load_folder

SENTENCE_CACHE_BYTES = 1 << 30
WORD_END = "</w>"  # of CLIP's tokens
WORD_START = "▁"  # of T5's tokens
PIXART_LENGTH, SD3_LENGTH = 120, 256  # tokens that T5 makes of a sentence in these pipelines


class TextEncoder(nn.Module):
    """The text model and tokenizer of a diffusers pipeline, never trained: CLIP's, unless a subclass says otherwise.

    Sentences have ``length`` tokens, by default as many as the pipeline itself uses.
    """

    projection_width = 0  # of what ``projected`` returns; one text model projects nothing

    def __init__(self, tokenizer: Any, model: Any, length: int | None = None) -> None:
        super().__init__()
        self.tokenizer, self.model = tokenizer, model
        self.length = length or min(model.config.max_position_embeddings, tokenizer.model_max_length)
        self.cache, self.width = LatentCache(SENTENCE_CACHE_BYTES), model.config.hidden_size
        self.tokens = self.length  # of a sentence in all

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
        """Return what a network is told of each sentence besides its tokens, as of the whole a projection; None if nothing."""
        return None

    def words(self, sentence: str) -> list[str]:
        """Return the word that each token of a sentence belongs to, and nothing for beginning, end and padding."""
        words: list[str] = []
        parts: list[str] = []
        for token in self.tokenizer.tokenize(sentence, verbose=False)[: self.length - 2]:
            parts.append(token)
            if token.endswith(WORD_END):
                words += ["".join(parts).removesuffix(WORD_END)] * len(parts)
                parts = []
        words += ["".join(parts)] * len(parts)  # of a word that was cut off
        return ["", *words, *[""] * (self.length - 1 - len(words))]

    def unseen(self, sentence: str) -> str:
        """Say that the end of a sentence has no token (``unseen``); empty if all of it has."""
        return unseen(self.tokenizer, sentence, self.length)

    def _each(self, kind: str, sentences: list[str], encode: Callable[[str], Tensor]) -> Tensor:
        """Encode each sentence alone, and once."""
        precision = self.model.dtype  # the model may have been moved to another since
        found = [self.cache.get((kind, precision, sentence), partial(encode, sentence)) for sentence in sentences]
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


class T5TextEncoder(TextEncoder):
    """PixArt's T5, which reads lower case; besides the tokens the transformer is told which are no padding (U7)."""

    def __init__(self, tokenizer: Any, model: Any, length: int | None = None) -> None:
        super().__init__(tokenizer, model, length or PIXART_LENGTH)

    def projected(self, sentences: list[str]) -> Tensor | None:
        """Return a mask (sentences, length): 1 for tokens, 0 for padding."""
        return self._mask(self._ids(self.tokenizer, sentences, "max_length"))

    def words(self, sentence: str) -> list[str]:
        """Return the word that each token of a sentence belongs to, and nothing for the end and padding."""
        return _t5_words(self.tokenizer, sentence.lower(), self.length)

    @torch.no_grad()
    def _states(self, sentences: list[str], padding: str) -> tuple[Tensor, Tensor]:
        ids = self._ids(self.tokenizer, sentences, padding)
        return self.model(input_ids=ids, attention_mask=self._mask(ids)).last_hidden_state, ids

    def _ids(self, tokenizer: Any, sentences: list[str], padding: str) -> Tensor:
        return super()._ids(tokenizer, [sentence.lower().strip() for sentence in sentences], padding)

    def _mask(self, ids: Tensor) -> Tensor:
        return (ids != self.tokenizer.pad_token_id).float()


class ThreeTextEncoders(TwoTextEncoders):
    """SD3's: the states of two CLIP text models, filled up with zeros, before those of T5, and both models' projections (U7).

    Without T5 its tokens are zeros, as in the pipeline. A class's token is CLIP's alone. ``length`` is that of each sequence.
    """

    def __init__(self, tokenizers: Sequence[Any], models: Sequence[Any], width: int, length: int | None = None) -> None:
        super().__init__(tokenizers, models, length)
        self.third_tokenizer, self.third = tokenizers[2], models[2]
        self.third_length = length or SD3_LENGTH
        self.tokens = self.length + self.third_length
        self.width = max(self.width, width if self.third is None else self.third.config.d_model)
        self.projection_width += self.model.config.projection_dim

    def words(self, sentence: str) -> list[str]:
        """Return the word that each token of a sentence belongs to, of CLIP's and then of T5's."""
        words = [] if self.third is None else _t5_words(self.third_tokenizer, sentence, self.third_length)
        return super().words(sentence) + (words or [""] * self.third_length)

    def unseen(self, sentence: str) -> str:
        """Say that the end of a sentence has no token of T5's, which are more than CLIP's; without T5, none of CLIP's."""
        return (
            super().unseen(sentence)
            if self.third is None
            else unseen(self.third_tokenizer, sentence, self.third_length)
        )

    @torch.no_grad()
    def _projected(self, sentence: str) -> Tensor:
        ids = self._ids(self.tokenizer, [sentence], "max_length")
        return torch.cat([self.model(input_ids=ids).text_embeds, super()._projected(sentence)], dim=-1)

    @torch.no_grad()
    def _padded(self, sentence: str) -> Tensor:
        states = super()._padded(sentence)
        if self.third is None:
            third = states.new_zeros(1, self.third_length, self.width)
        else:
            options = {"padding": "max_length", "truncation": True, "max_length": self.third_length}
            ids = self.third_tokenizer([sentence], **options, return_tensors="pt").input_ids
            third = self.third(input_ids=ids.to(states.device)).last_hidden_state
        return torch.cat([states, third], dim=1)

    def _states(self, sentences: list[str], padding: str) -> tuple[Tensor, Tensor]:
        states, ids = super()._states(sentences, padding)
        return F.pad(states, (0, self.width - states.shape[-1])), ids


def unseen(tokenizer: Any, sentence: str, length: int) -> str:
    """Say that a network sees only the first ``length`` tokens of a sentence; empty if it sees them all."""
    tokens = len(tokenizer(sentence, verbose=False).input_ids)
    return f"the text has {tokens} tokens, of which the network sees {length}; shorten it" if tokens > length else ""


def _t5_words(tokenizer: Any, sentence: str, length: int) -> list[str]:
    tokens, words = tokenizer.tokenize(sentence, verbose=False)[: length - 1], list[str]()
    starts = [number for number, token in enumerate(tokens) if token.startswith(WORD_START)]
    for start, end in pairwise([*starts, len(tokens)]):
        word = "".join(tokens[start:end]).removeprefix(WORD_START).strip(punctuation)
        words += [word.lower()] * (end - start)
    return words + [""] * (length - len(words))


def build_text_encoder(
    parts: Sequence[tuple[Any, Any]], joint_width: int | None = None, length: int | None = None
) -> TextEncoder:
    """Put a pipeline's text encoders together.

    Args:
        parts: tokenizer and model of each, None and None for one that is left out.
        joint_width: width of the tokens of a transformer; None for a U-Net.
        length: tokens of a sentence.
    """
    tokenizers, models = zip(*parts, strict=True)
    if len(parts) == 1:
        return (TextEncoder if joint_width is None else T5TextEncoder)(*parts[0], length)
    if joint_width is None:
        return TwoTextEncoders(tokenizers, models, length)
    left_out = (None,) * (3 - len(parts))
    return ThreeTextEncoders((*tokenizers, *left_out), (*models, *left_out), joint_width, length)


def load_text_encoder(checkpoint: Path, length: int | None = None) -> TextEncoder:
    """Load the frozen text encoder of a diffusers pipeline folder in single precision, or all that it has.

    Args:
        checkpoint: the pipeline's folder.
        length: tokens of a sentence.

    Raises:
        UserError: a part is missing or damaged, or takes fewer tokens than ``length``.
    """
    logging.disable_progress_bar()  # loading takes a moment; standard error is for the stage's own progress
    endings = [ending for ending in ("", "_2", "_3") if not ending or (checkpoint / f"text_encoder{ending}").is_dir()]
    width = None
    if (checkpoint / TRANSFORMER).is_dir():
        width = token_width(read_json(checkpoint / TRANSFORMER / "config.json"))
    parts = [_load(checkpoint, ending, alone=len(endings) == 1, joint=width is not None) for ending in endings]
    encoder = build_text_encoder(parts, width, length)
    if encoder.length > (limit := getattr(encoder.model.config, "max_position_embeddings", encoder.length)):
        folder = checkpoint / "text_encoder"
        raise UserError(
            f"model.prompt.length is {length}, but the text model in {folder} takes at most {limit}; lower it"
        )
    return encoder.requires_grad_(False).eval()


def load_tokenizer(folder: Path, kind: str, cure: str = "make or download it again") -> Any:
    """Load a ``CLIPTokenizer`` or ``T5Tokenizer``; UserError with ``cure`` if it is damaged."""
    with load_folder(folder, cure):
        return getattr(transformers, kind).from_pretrained(folder, local_files_only=True)


def _load(checkpoint: Path, ending: str, *, alone: bool, joint: bool) -> tuple[Any, Any]:
    """Load a tokenizer and a text model of a pipeline folder, whose names have an ``ending``."""
    tokens, folder = component(checkpoint, f"tokenizer{ending}"), component(checkpoint, f"text_encoder{ending}")
    t5 = ending == "_3" or (joint and alone)
    model = T5EncoderModel if t5 else CLIPTextModelWithProjection if ending or joint else CLIPTextModel
    tokenizer = load_tokenizer(tokens, "T5Tokenizer" if t5 else "CLIPTokenizer")
    with load_folder(folder):
        return tokenizer, model.from_pretrained(folder, local_files_only=True).float()
