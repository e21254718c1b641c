"""A small T5 (Raffel et al. 2020): its tokenizer, made of the captions' words, and its training to fill in what is left out."""

from __future__ import annotations

import copy
import math
import string
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Generator, Tensor
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration, T5Tokenizer

from vpd.config.schema import SmallT5Spec
from vpd.pretraining.loop import Phase, initialised_by, rise_and_fall
from vpd.pretraining.workdir import Workdir
from vpd.utils.errors import UserError

SPECIAL = ("<pad>", "</s>", "<unk>")
PAD, END = 0, 1  # their numbers, as in T5
SPACE = "▁"  # before every word
LEFT_OUT = "<extra_id_0>"
"""Stands for the words that are left out. T5 has a hundred of these, but only one for texts as short as captions."""
HIDDEN_SHARE = 0.15
LETTER = -20.0  # log-probability of a letter by itself: less than that of any word, so that words stay whole
IGNORED = -100  # of the loss


def train_t5_tokenizer(texts: Iterable[str], vocabulary: int, length: int, key: str) -> T5Tokenizer:
    """Make ``vocabulary`` tokens (``key`` in params.yaml) of the most frequent words in lower case, all ASCII among them."""
    words = Counter(
        word for text in texts for each in prepared(text).split() if (word := each.strip(string.punctuation))
    )
    letters = [chr(code) for code in range(33, 127)]
    alphabet = [*SPECIAL, LEFT_OUT, SPACE, *letters]
    if vocabulary < len(alphabet):
        raise UserError(f"{key} is {vocabulary}, but T5's letters alone need {len(alphabet)}; raise it")
    # By frequency, then by name. Learning smaller pieces, as SentencePiece does, has no one result for ties.
    ranked = sorted(words.items(), key=lambda item: (-item[1], item[0]))[: vocabulary - len(alphabet)]
    scores = [(piece, 0.0) for piece in (*SPECIAL, LEFT_OUT)] + [(piece, LETTER) for piece in (SPACE, *letters)]
    scores += [(SPACE + word, math.log(count / words.total())) for word, count in ranked]
    return T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=length)


def prepared(text: str) -> str:
    """Return a text as PixArt's pipeline gives it to T5."""
    return text.lower().strip()


def encode_t5(tokenizer: T5Tokenizer, texts: list[str]) -> Tensor:
    """Token numbers (N,L), padded and truncated as ``PixArtAlphaPipeline`` does it."""
    options = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
    return tokenizer([prepared(text) for text in texts], **options, return_tensors="pt").input_ids


def build_t5(spec: SmallT5Spec, tokenizer: T5Tokenizer) -> T5ForConditionalGeneration:
    """Build a fresh T5 of version 1.1 with a decoder of one layer."""
    sizes = {"d_model": spec.width, "d_kv": spec.width // spec.heads, "d_ff": 5 * spec.width // 2}
    depths = {"num_layers": spec.layers, "num_decoder_layers": 1, "num_heads": spec.heads}
    numbers = {"vocab_size": len(tokenizer), "pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": PAD}
    return T5ForConditionalGeneration(
        T5Config(**sizes, **depths, **numbers, feed_forward_proj="gated-gelu", dropout_rate=0.0)
    )


def leave_out(tokens: Tensor, mark: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Leave HIDDEN_SHARE of each text's tokens (B,L) out, one span of at least one, and put the token ``mark`` in its place.

    Returns what the encoder sees (B,L), and what the decoder is to say: that token, the span and the end, then IGNORED.
    """
    count = ((tokens != PAD) & (tokens != END)).sum(dim=1)
    size = (HIDDEN_SHARE * count).round().clamp(min=1).long()[:, None]
    lot = torch.rand(len(tokens), generator=generator, dtype=torch.float64)
    first = (lot * (count - size[:, 0] + 1)).long()[:, None]
    place, last = torch.arange(tokens.shape[1])[None], tokens.shape[1] - 1
    source = place + (place > first) * (size - 1)  # what follows the span moves up
    seen = tokens.gather(1, source.clamp(max=last)).masked_fill(source > last, PAD)
    span = tokens.gather(1, (first + place - 1).clamp(0, last))
    said = torch.where(place <= size, span, IGNORED).masked_fill(place == 0, mark).masked_fill(place == size + 1, END)
    return seen.masked_fill(place == first, mark), said[:, : int(size.max()) + 2].contiguous()


def train_t5(
    spec: SmallT5Spec, tokenizer: T5Tokenizer, texts: list[str], workdir: Workdir, key: str
) -> tuple[T5EncoderModel, list[float]]:
    """Train on texts alone; return the encoder, on the CPU, with the loss of every step. ``key`` is that in params.yaml."""
    with initialised_by(workdir.seed, "language"):
        model = build_t5(spec, tokenizer)
    tokens, mark = encode_t5(tokenizer, texts), tokenizer.convert_tokens_to_ids(LEFT_OUT)

    def loss_of(generator: Generator) -> Tensor:
        index = torch.randint(len(tokens), (spec.batch_size,), generator=generator)
        seen, said = (part.to(workdir.device) for part in leave_out(tokens[index], mark, generator))
        return model(input_ids=seen, attention_mask=t5_mask(seen), labels=said).loss

    phase = Phase("language", key, model, spec.steps, spec.lr, rise_and_fall(spec.steps))
    losses = phase.train(workdir, loss_of)
    return t5_encoder(model), losses


def t5_mask(tokens: Tensor) -> Tensor:
    """1 for tokens (B,L), 0 for padding."""
    return (tokens != PAD).float()


def t5_encoder(model: T5ForConditionalGeneration) -> T5EncoderModel:
    """The encoder as a model of its own, as ``PixArtAlphaPipeline`` expects it, on the CPU."""
    with torch.random.fork_rng(devices=[]):  # its initial weights are overwritten, but would draw from the global state
        encoder = T5EncoderModel(copy.deepcopy(model.config))
    own = {name: x for name, x in model.state_dict().items() if name in encoder.state_dict()}
    encoder.load_state_dict(own)
    return encoder.cpu().eval()
