"""A BERT tokenizer (WordPiece) learned from captions."""

from __future__ import annotations

import string
from collections.abc import Iterable

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer
from transformers import BertTokenizer

from vpd.utils.errors import UserError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
INSIDE = "##"
"""Marks a piece that continues a word."""


def train_wordpiece(texts: Iterable[str], vocabulary: int, length: int) -> BertTokenizer:
    """Learn at most ``vocabulary`` lower-case pieces from ``texts``; the tokenizer cuts texts to ``length``.

    Printable ASCII is in the vocabulary, at the beginning of a word and inside, so that any English falls into pieces.
    """
    texts = sorted(texts)
    normalizer = normalizers.BertNormalizer(lowercase=True)
    seen = {letter for text in texts for letter in normalizer.normalize_str(text)} - set(string.whitespace)
    letters = sorted(seen | set(string.digits + string.ascii_lowercase + string.punctuation))
    alphabet = letters + [INSIDE + letter for letter in letters]
    least = len(SPECIAL) + len(alphabet)
    if vocabulary < least:
        raise UserError(f"a vocabulary of {vocabulary} is too small for BERT: the letters alone need {least}; raise it")
    learner = Tokenizer(WordPiece(unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    # Ties between equally frequent pairs go by token number; declaring the letters beforehand fixes the numbers.
    trainer = WordPieceTrainer(vocab_size=vocabulary, special_tokens=[*SPECIAL, *alphabet], show_progress=False)
    learner.train_from_iterator(texts, trainer)
    return BertTokenizer(vocab=learner.get_vocab(with_added_tokens=True), model_max_length=length)
