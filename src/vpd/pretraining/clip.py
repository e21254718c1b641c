"""CLIP (Radford et al. 2021): its tokenizer, learned from captions, its loss, and a small one trained for its text tower."""

from __future__ import annotations

import json
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Generator, Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from vpd.config.schema import TextSpec
from vpd.pretraining.captions import Captions
from vpd.pretraining.loop import Phase, initialised_by, rise_and_fall
from vpd.pretraining.workdir import Workdir
from vpd.utils.errors import UserError

MATCHED = 64  # pairs that compete when matching is measured
WORD_END = "</w>"
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def train_tokenizer(
    texts: Iterable[str], vocabulary: int, length: int, key: str = "pretraining.text.vocabulary"
) -> CLIPTokenizer:
    """Learn at most ``vocabulary`` tokens (``key`` in params.yaml), all bytes among them; texts are cut to ``length``."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = letters + [letter + WORD_END for letter in letters]
    least = len(alphabet) + len(SPECIAL)
    if vocabulary < least:
        raise UserError(f"{key} is {vocabulary}, but the bytes alone need {least}; raise it")
    clip = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(BPE(continuing_subword_prefix="", end_of_word_suffix=WORD_END))
    learner.normalizer, learner.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    # Ties between equally frequent pairs go by token number, and the library numbers word-final letters in the order
    # of a randomly seeded hash table. Declaring them as special tokens fixes the numbers, and with them the merges.
    trainer = BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL), special_tokens=alphabet, end_of_word_suffix=WORD_END, show_progress=False
    )
    learner.train_from_iterator(sorted(texts), trainer)
    merges = [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]
    # Two merges may spell the same token, which counts once.
    tokens = dict.fromkeys([*alphabet, *("".join(pair) for pair in merges), *SPECIAL])
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=length
    )


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


def build_clip(spec: TextSpec, tokenizer: CLIPTokenizer, size: tuple[int, int]) -> CLIPModel:
    """Build a fresh CLIPModel whose two towers have the same width, depth and heads."""
    sizes = {"hidden_size": spec.width, "intermediate_size": 4 * spec.width}
    tower = sizes | {"num_hidden_layers": spec.layers, "num_attention_heads": spec.heads}
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": spec.length, **special_tokens(tokenizer)}
    vision = {**tower, "image_size": max(size), "patch_size": spec.patch_size}
    return CLIPModel(CLIPConfig(text_config=tower | words, vision_config=vision, projection_dim=spec.width))


def train_clip(
    spec: TextSpec, tokenizer: CLIPTokenizer, captions: Captions, workdir: Workdir
) -> tuple[CLIPModel, list[float]]:
    """Train on (image, caption) pairs and return the model with the loss of every step."""
    with initialised_by(workdir.seed, "text"):
        model = build_clip(spec, tokenizer, captions.size)
    tokens = encode(tokenizer, captions.texts)

    def loss_of(generator: Generator) -> Tensor:
        pair = torch.randperm(len(captions.text_of), generator=generator)[: spec.batch_size]
        text = captions.text_of[pair]
        logits = _logits(model, captions.pixels(captions.image_of[pair]), tokens[text], workdir.device)
        return contrastive_loss(logits, (text[:, None] == text[None]).to(workdir.device))

    phase = Phase("text", "pretraining.text", model, spec.steps, spec.lr, rise_and_fall(spec.steps))
    return model, phase.train(workdir, loss_of)


def _logits(model: CLIPModel, images: Tensor, tokens: Tensor, device: torch.device) -> Tensor:
    """Scaled cosine similarity (B,B) of images (rows) and captions (columns)."""
    # No attention mask, because Stable Diffusion passes none: padding follows [EOS], which therefore cannot attend to it.
    output = model(input_ids=tokens.to(device), pixel_values=images.to(device), interpolate_pos_encoding=True)
    return output.logits_per_image


@torch.no_grad()
def matching_accuracy(model: CLIPModel, tokenizer: CLIPTokenizer, captions: Captions, device: torch.device) -> float:
    """Share of the first MATCHED pairs whose own caption scores best for the image among all captions of these pairs."""
    text = captions.text_of[:MATCHED]
    tokens = encode(tokenizer, [captions.texts[index] for index in text])
    best = _logits(model, captions.pixels(captions.image_of[:MATCHED]), tokens, device).argmax(dim=1).cpu()
    return (text[best] == text).float().mean().item()


def text_tower(model: CLIPModel) -> CLIPTextModel:
    """The text tower as a model of its own, as ``StableDiffusionPipeline`` expects it, on the CPU."""
    with torch.random.fork_rng(devices=[]):  # its initial weights are overwritten, but would draw from the global state
        tower = CLIPTextModel(model.config.text_config)
    tower.load_state_dict(model.text_model.state_dict())
    return tower.cpu().eval()


@torch.no_grad()
def encode_texts(text: CLIPTextModel, tokens: Tensor, chunk: int = 256) -> Tensor:
    """Final hidden states (T,L,C) of token numbers (T,L), computed ``chunk`` texts at a time."""
    return torch.cat([text(part).last_hidden_state for part in tokens.split(chunk)])
