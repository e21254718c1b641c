"""A CLIP tokenizer (byte-pair encoding) learned from captions, laid out as OpenAI's."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import CLIPTokenizer

from vpd.utils.errors import UserError

WORD_END = "</w>"
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def train_tokenizer(texts: Iterable[str], vocabulary: int, length: int) -> CLIPTokenizer:
    """Learn at most ``vocabulary`` tokens from ``texts``; the tokenizer pads and truncates to ``length``.

    All 256 bytes are tokens, inside and at the end of a word, so that any text falls into known pieces.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = letters + [letter + WORD_END for letter in letters]
    room = vocabulary - len(alphabet) - len(SPECIAL)
    if room < 0:
        least = len(alphabet) + len(SPECIAL)
        raise UserError(f"pretraining.text.vocabulary is {vocabulary}, but the bytes alone need {least}; raise it")
    merges = _learn_merges(sorted(texts), alphabet, room)
    # Two merges may spell the same token, which counts once.
    tokens = dict.fromkeys([*alphabet, *("".join(pair) for pair in merges), *SPECIAL])
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def _learn_merges(texts: list[str], alphabet: list[str], count: int) -> list[tuple[str, str]]:
    """The first ``count`` merges, or fewer where every word is already one token."""
    clip = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(BPE(continuing_subword_prefix="", end_of_word_suffix=WORD_END))
    learner.normalizer, learner.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    # Ties between equally frequent pairs go by token number, and the library numbers word-final letters in the order
    # of a randomly seeded hash table; declaring them beforehand fixes the numbers, and with them the merges.
    trainer = BpeTrainer(
        vocab_size=len(alphabet) + count,
        special_tokens=alphabet,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]


def encode(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token numbers (N, length), padded and cut the way ``StableDiffusionPipeline`` does it."""
    encoded = tokenizer(
        texts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return encoded.input_ids
