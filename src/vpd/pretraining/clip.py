"""CLIP (Radford et al. 2021): its tokenizer, learned from captions, its loss, and a small one trained for its text tower."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from vpd.config.schema import TextSpec
from vpd.pretraining.captions import Captions
from vpd.pretraining.loop import Phase, initialised_by, rise_and_fall
from vpd.pretraining.workdir import Workdir
from vpd.utils.errors import UserError

MATCHED = 64  # pairs that compete when matching is measured
WORD_END = "</w>"
APART = 1.0
"""Standard deviation of token embeddings at first; position embeddings begin with a third of it. With CLIP's own, 0.02, what a
word is drowns in what the sentence is: two layers later all words of a sentence have nearly the same state (docs/log.md)."""
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


def words_of(tokens: Tensor, tokenizer: CLIPTokenizer) -> Tensor:
    """Which token numbers (T,L) are words: (T,L) bool, without [BOS] in front and from [EOS] on."""
    after_end = (tokens == tokenizer.eos_token_id).int().cumsum(dim=1) > 0
    return ~after_end & (torch.arange(tokens.shape[1], device=tokens.device) > 0)


def word_similarity(texts: Tensor, words: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
    """Late interaction (FILIP, Yao et al. 2021) of texts (T,L,C) and patches (I,P,C), both of unit length.

    Returns (I,T) each: the mean over patches of the best word of ``words`` (T,L), and the mean over words of the best patch.
    """
    pairs = torch.einsum("tlc,ipc->itlp", texts, patches)
    best_word = pairs.masked_fill(~words[None, :, :, None], -1.0).amax(dim=2).mean(dim=2)
    best_patch = (pairs.amax(dim=3) * words).sum(dim=2) / words.sum(dim=1)
    return best_word, best_patch


def word_loss(model: CLIPModel, output: Any, words: Tensor, same: Tensor) -> Tensor:
    """Contrast of images and texts by their words and patches instead of by one vector each.

    Without it all that a text says is in its [EOS] token, and a U-Net that attends to words finds nothing there.
    """
    vision = model.vision_model.post_layernorm(output.vision_model_output.last_hidden_state[:, 1:])
    patches = F.normalize(model.visual_projection(vision), dim=-1)
    texts = F.normalize(model.text_projection(output.text_model_output.last_hidden_state), dim=-1)
    by_image, by_text = (similarity * model.logit_scale.exp() for similarity in word_similarity(texts, words, patches))
    share = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(by_image, share) + F.cross_entropy(by_text.T, share)) / 2


def build_clip(spec: TextSpec, tokenizer: CLIPTokenizer, size: tuple[int, int]) -> CLIPModel:
    """Build a fresh CLIPModel whose two towers have the same width, depth and heads."""
    sizes = {"hidden_size": spec.width, "intermediate_size": 4 * spec.width}
    tower = sizes | {"num_hidden_layers": spec.layers, "num_attention_heads": spec.heads}
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": spec.length, **special_tokens(tokenizer)}
    vision = {**tower, "image_size": max(size), "patch_size": spec.patch_size}
    model = CLIPModel(CLIPConfig(text_config=tower | words, vision_config=vision, projection_dim=spec.width))
    embeddings = model.text_model.embeddings
    nn.init.normal_(embeddings.token_embedding.weight, std=APART)
    nn.init.normal_(embeddings.position_embedding.weight, std=APART / 3)
    return model


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
        output = _compare(model, captions.pixels(captions.image_of[pair]), tokens[text], workdir.device)
        same = (text[:, None] == text[None]).to(workdir.device)
        words = words_of(tokens[text], tokenizer).to(workdir.device)
        return contrastive_loss(output.logits_per_image, same) + word_loss(model, output, words, same)

    phase = Phase("text", "pretraining.text", model, spec.steps, spec.lr, rise_and_fall(spec.steps))
    return model, phase.train(workdir, loss_of)


def _compare(model: CLIPModel, images: Tensor, tokens: Tensor, device: torch.device) -> Any:
    """Run both towers; ``logits_per_image`` is the scaled cosine similarity (B,B) of images (rows) and captions (columns)."""
    # No attention mask, because Stable Diffusion passes none: padding follows [EOS], which therefore cannot attend to it.
    return model(input_ids=tokens.to(device), pixel_values=images.to(device), interpolate_pos_encoding=True)


@torch.no_grad()
def matching_accuracy(model: CLIPModel, tokenizer: CLIPTokenizer, captions: Captions, device: torch.device) -> float:
    """Share of the first MATCHED pairs whose own caption scores best for the image among all captions of these pairs."""
    text = captions.text_of[:MATCHED]
    tokens = encode(tokenizer, [captions.texts[index] for index in text])
    output = _compare(model, captions.pixels(captions.image_of[:MATCHED]), tokens, device)
    best = output.logits_per_image.argmax(dim=1).cpu()
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
