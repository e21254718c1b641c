"""Masked language modelling on the captions, for the text encoder that comes with a backbone (LAVT's BERT)."""

from __future__ import annotations

import string
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer
from torch import Generator, Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from vpd.config.schema import BackboneSpec
from vpd.pretraining.backbones.examples import Examples
from vpd.pretraining.backbones.objective import CHUNK, VOCABULARY, Objective
from vpd.pretraining.loop import generator_of, turn_off_library_bars
from vpd.utils.errors import UserError

HIDDEN_SHARE = 0.15
MASKED, RANDOM = 0.8, 0.1  # of the tokens to be predicted: share replaced by [MASK], and by a random token
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
INSIDE = "##"  # marks a piece that continues a word


class MaskedLanguage(Objective):
    """Learn to predict hidden tokens of a caption from the others, after BERT (Devlin et al. 2019), for LAVT (B2).

    BERT's second task is left out, because captions are single sentences. A batch (B,) numbers distinct captions.
    """

    def __init__(self, examples: Examples, spec: BackboneSpec) -> None:
        super().__init__(examples)
        assert spec.language is not None  # else there is nothing to train
        assert spec.vocabulary is not None  # pretrain_backbone has checked
        longest = BertConfig(**spec.language.options).max_position_embeddings
        self.tokenizer = train_wordpiece(examples.texts(held=False), spec.vocabulary, longest)
        special = {"vocab_size": len(self.tokenizer), "pad_token_id": self.tokenizer.pad_token_id}
        self.model = BertForMaskedLM(BertConfig(**spec.language.options, **special))
        encode = partial(self.tokenizer, padding=True, truncation=True, return_tensors="pt")
        self.texts = {held: encode(examples.texts(held)).input_ids for held in (False, True)}  # (T,L) each

    def save(self, folder: Path) -> int:
        """Write BERT without its prediction layer, and its tokenizer, to ``folder``/language."""
        turn_off_library_bars()
        bert = self.model.cpu().eval().bert
        bert.save_pretrained(folder / "language")
        self.tokenizer.save_pretrained(folder / "language")
        return bert.num_parameters()

    def candidates(self, held: bool) -> Tensor:
        """Captions, numbered among those to train on or those held out."""
        return torch.arange(len(self.texts[held]))

    def logits(self, tokens: Tensor) -> Tensor:
        """(B,L,vocabulary) for tokens (B,L), hidden ones among them."""
        tokens = tokens.to(self.device)
        return self.model(input_ids=tokens, attention_mask=(tokens != self.tokenizer.pad_token_id).long()).logits

    def hide(self, tokens: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Tokens (B,L) as the network sees them, and which of them (B,L) bool it is to predict."""
        chosen = to_predict(tokens, torch.tensor(self.tokenizer.all_special_ids), generator)
        lot = torch.rand(tokens.shape, generator=generator)
        others = torch.randint(len(self.tokenizer), tokens.shape, generator=generator)
        seen = tokens.masked_fill(chosen & (lot < MASKED), self.tokenizer.mask_token_id)
        return torch.where(chosen & (lot >= MASKED) & (lot < MASKED + RANDOM), others, seen), chosen

    def loss(self, batch: Tensor, generator: Generator) -> Tensor:
        """Mean cross-entropy over the tokens to be predicted."""
        tokens = self.texts[False][batch]
        seen, chosen = self.hide(tokens, generator)
        return F.cross_entropy(self.logits(seen)[chosen.to(self.device)], tokens[chosen].to(self.device))

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Share of the held-out captions' hidden tokens that are predicted."""
        generator, right = generator_of("held-out words"), []
        for part in self.candidates(held=True).split(CHUNK):
            tokens = self.texts[True][part]
            seen, chosen = self.hide(tokens, generator)
            right.append((self.logits(seen).argmax(dim=2).cpu() == tokens)[chosen])
        return {"token_accuracy": torch.cat(right).float().mean().item()}


def to_predict(tokens: Tensor, special: Tensor, generator: Generator) -> Tensor:
    """(B,L) bool: HIDDEN_SHARE of each text's ordinary tokens, at least one, at random positions."""
    ordinary = ~torch.isin(tokens, special)
    counts = (HIDDEN_SHARE * ordinary.sum(dim=1)).round().clamp(min=1).long()
    scores = torch.rand(tokens.shape, generator=generator).masked_fill(~ordinary, 2.0)
    ranks = scores.argsort(dim=1).argsort(dim=1)
    return (ranks < counts[:, None]) & ordinary


def train_wordpiece(texts: Iterable[str], vocabulary: int, length: int) -> BertTokenizer:
    """Learn at most ``vocabulary`` lower-case pieces, ASCII among them, as BERT's; the tokenizer truncates to ``length``."""
    texts = sorted(texts)
    normalizer = normalizers.BertNormalizer(lowercase=True)
    seen = {letter for text in texts for letter in normalizer.normalize_str(text)} - set(string.whitespace)
    letters = sorted(seen | set(string.digits + string.ascii_lowercase + string.punctuation))
    alphabet = [*SPECIAL, *letters, *(INSIDE + letter for letter in letters)]
    if vocabulary < len(alphabet):
        raise UserError(f"{VOCABULARY} is {vocabulary}, but BERT's letters alone need {len(alphabet)}; raise it")
    learner = Tokenizer(WordPiece(unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    # Ties between equally frequent pairs go by token number; declaring the letters beforehand fixes the numbers.
    trainer = WordPieceTrainer(vocab_size=vocabulary, special_tokens=alphabet, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    return BertTokenizer(vocab=learner.get_vocab(with_added_tokens=True), model_max_length=length)
