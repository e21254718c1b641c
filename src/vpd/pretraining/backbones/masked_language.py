"""Masked language modelling, after BERT (Devlin et al. 2019), on the captions."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM

from vpd.config.schema import BackboneSpec
from vpd.pretraining.backbones.examples import Examples
from vpd.pretraining.backbones.objective import Objective
from vpd.pretraining.backbones.wordpiece import train_wordpiece
from vpd.pretraining.loop import generator_of

HIDDEN_SHARE = 0.15
MASKED, RANDOM = 0.8, 0.1
"""Of the tokens to be guessed: share replaced by [MASK], and by a random token; the rest stays."""
CHUNK = 64


class MaskedLanguage(Objective):
    """Guess hidden tokens of a caption from the others.

    BERT's second task, whether one sentence follows another, is left out: captions are single sentences.
    """

    sees = ("captions",)

    def __init__(self, examples: Examples, spec: BackboneSpec) -> None:
        super().__init__(examples)
        self.tokenizer = train_wordpiece(examples.texts(held=False), spec.vocabulary, _longest(spec))
        config = BertConfig(
            **spec.language.options, vocab_size=len(self.tokenizer), pad_token_id=self.tokenizer.pad_token_id
        )
        self.model = BertForMaskedLM(config)
        self.texts = {held: self._encode(examples.texts(held)) for held in (False, True)}

    def _encode(self, texts: list[str]) -> Tensor:
        """(T,L) token numbers, padded to the longest."""
        return self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").input_ids

    def candidates(self, held: bool) -> Tensor:
        """Captions, numbered among those to train on or those kept out."""
        return torch.arange(len(self.texts[held]))

    def logits(self, tokens: Tensor) -> Tensor:
        """(B,L,vocabulary) for tokens (B,L), hidden ones among them."""
        tokens = tokens.to(self.device)
        return self.model(input_ids=tokens, attention_mask=(tokens != self.tokenizer.pad_token_id).long()).logits

    def hide(self, tokens: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Tokens (B,L) as the network sees them, and which of them (B,L) bool it is to guess."""
        guessed = to_guess(tokens, torch.tensor(self.tokenizer.all_special_ids), generator)
        lot = torch.rand(tokens.shape, generator=generator)
        others = torch.randint(len(self.tokenizer), tokens.shape, generator=generator)
        seen = tokens.masked_fill(guessed & (lot < MASKED), self.tokenizer.mask_token_id)
        return torch.where(guessed & (lot >= MASKED) & (lot < MASKED + RANDOM), others, seen), guessed

    def loss(self, batch: Tensor, generator: Generator) -> Tensor:
        """Mean cross-entropy over the tokens to be guessed."""
        tokens = self.texts[False][batch]
        seen, guessed = self.hide(tokens, generator)
        return F.cross_entropy(self.logits(seen)[guessed.to(self.device)], tokens[guessed].to(self.device))

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Share of the held-out captions' hidden tokens that are guessed."""
        generator, right = generator_of("held-out words"), []
        for part in self.candidates(held=True).split(CHUNK):
            tokens = self.texts[True][part]
            seen, guessed = self.hide(tokens, generator)
            right.append((self.logits(seen).argmax(dim=2).cpu() == tokens)[guessed])
        return {"token_accuracy": torch.cat(right).float().mean().item()}


def to_guess(tokens: Tensor, special: Tensor, generator: Generator) -> Tensor:
    """(B,L) bool: HIDDEN_SHARE of each text's ordinary tokens, at least one, at random places."""
    ordinary = ~torch.isin(tokens, special)
    counts = (HIDDEN_SHARE * ordinary.sum(dim=1)).round().clamp(min=1).long()
    scores = torch.rand(tokens.shape, generator=generator).masked_fill(~ordinary, 2.0)
    ranks = scores.argsort(dim=1).argsort(dim=1)
    return (ranks < counts[:, None]) & ordinary


def _longest(spec: BackboneSpec) -> int:
    return BertConfig(**spec.language.options).max_position_embeddings
