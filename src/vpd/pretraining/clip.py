"""What everything that is trained after CLIP (Radford et al. 2021) shares: its tokenizer, learned from captions, and its loss."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from vpd.utils.errors import UserError

MATCHED = 64  # pairs that compete when matching is measured
WORD_END = "</w>"
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def train_tokenizer(
    texts: Iterable[str], vocabulary: int, length: int, key: str = "pretraining.text.vocabulary"
) -> CLIPTokenizer:
    """Learn at most ``vocabulary`` tokens, laid out as OpenAI's; the tokenizer pads and truncates to ``length``.

    All 256 bytes are tokens, inside and at the end of a word, so that no text is without tokens. UserError if the
    vocabulary, set by ``key`` of params.yaml, has no room for them.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = letters + [letter + WORD_END for letter in letters]
    least = len(alphabet) + len(SPECIAL)
    if vocabulary < least:
        raise UserError(f"{key} is {vocabulary}, but the bytes alone need {least}; raise it")
    merges = _learn_merges(sorted(texts), alphabet, vocabulary - least)
    # Two merges may spell the same token, which counts once.
    tokens = dict.fromkeys([*alphabet, *("".join(pair) for pair in merges), *SPECIAL])
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=length
    )


def _learn_merges(texts: list[str], alphabet: list[str], count: int) -> list[tuple[str, str]]:
    """The first ``count`` merges, or fewer if every word is already one token."""
    clip = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(BPE(continuing_subword_prefix="", end_of_word_suffix=WORD_END))
    learner.normalizer, learner.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    # Ties between equally frequent pairs go by token number, and the library numbers word-final letters in the order
    # of a randomly seeded hash table. Declaring them as special tokens fixes the numbers, and with them the merges.
    trainer = BpeTrainer(
        vocab_size=len(alphabet) + count, special_tokens=alphabet, end_of_word_suffix=WORD_END, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]


def encode(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token numbers (N,L), padded and truncated as ``StableDiffusionPipeline`` does it."""
    length = tokenizer.model_max_length
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def special_tokens(tokenizer: CLIPTokenizer) -> dict[str, int]:
    """Numbers of the special tokens, as CLIP's configurations call them; by [EOS] the text tower finds its output."""
    return {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}


def contrastive_loss(logits: Tensor, same: Tensor) -> Tensor:
    """Symmetric cross-entropy of image-text logits (B,B); ``same`` (B,B) bool says which captions are equal."""
    # Synthetic captions repeat within a batch: all equal ones are right answers, with equal shares.
    share = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, share) + F.cross_entropy(logits.T, share)) / 2
