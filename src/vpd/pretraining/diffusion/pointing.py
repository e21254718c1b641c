"""Whether words point: how well a word's cross-attention map tells the pixels of its class from all others.

The score is the area under the ROC curve (0.5 is chance), with the map enlarged to the image. It is taken of the text in the
form that VPD gives it to the U-Net, one token per class name, and of the words in captions. The latents have no noise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from vpd.config.schema import AttentionSpec, PromptSpec
from vpd.models.diffusion import FeatureUNet, load_unet
from vpd.models.prompts import TextEncoder, encode_prompts
from vpd.pretraining.diffusion.scenes import CAPTIONS, CLASSES, Scenes

CHUNK = 64  # images at a time
LEAST_PIXELS = 32  # smaller parts of a class, or of what is not of the class, say little
ATTENTION = AttentionSpec.model_validate({"places": ["down", "up"], "limit": 1, "gradient": "detached"})
SINGLE = {"strategy": "class-names", "templates": "single"}
Tokens = Mapping[int, Tensor]  # number of a class -> positions of its tokens


class Scores:
    """Areas under the ROC curve by level and class, averaged over images and then over classes."""

    def __init__(self) -> None:
        self.areas: dict[tuple[str, int], list[float]] = defaultdict(list)

    def add(self, level: str, number: int, area: float) -> None:
        """Note the area of class ``number`` in one image."""
        self.areas[level, number].append(area)

    def means(self) -> dict[str, float]:
        """Mean over classes by level."""
        levels = dict.fromkeys(level for level, _ in self.areas)
        return {
            name: float(np.mean([np.mean(v) for (level, _), v in self.areas.items() if level == name]))
            for name in levels
        }


@torch.no_grad()
def pointing(pipeline: Path, latents: Tensor, scenes: Scenes, timestep: int, device: torch.device) -> dict[str, float]:
    """Scores of the pipeline in a folder on scenes with the scaled ``latents`` (N,4,h,w).

    Keys are ``class_auc`` and ``word_auc``, over the mean of all levels, and both followed by the side of a level's map.
    """
    text = TextEncoder(pipeline, CLIPTokenizer.from_pretrained(pipeline / "tokenizer").model_max_length)
    unet = FeatureUNet(load_unet(pipeline, "pretrained"), ATTENTION).to(device).eval()
    names = encode_prompts(PromptSpec.model_validate(SINGLE | {"length": text.length}), text, list(CLASSES))
    every = {number: torch.tensor([number]) for number in range(len(CLASSES))}
    by_class, by_word = Scores(), Scores()
    for chunk in torch.arange(len(scenes)).split(CHUNK):
        masks, own = scenes.labels[chunk], latents[chunk].to(device)
        _score(unet, own, timestep, names.expand(len(chunk), -1, -1), masks, [every] * len(chunk), by_class)
        for number in range(CAPTIONS):
            captions = [scenes.captions[index][number] for index in chunk.tolist()]
            tokens = [class_tokens(text.tokenizer, caption, text.length) for caption in captions]
            _score(unet, own, timestep, text(captions), masks, tokens, by_word)
    means = {"class": by_class.means(), "word": by_word.means()}
    return {f"{form}_auc{level}": value for form, levels in means.items() for level, value in levels.items()}


def class_tokens(tokenizer: CLIPTokenizer, caption: str, length: int) -> dict[int, Tensor]:
    """Positions of the tokens of every class that ``caption``, cut to ``length`` tokens, names as a word."""
    ids = tokenizer(caption, truncation=True, max_length=length).input_ids
    found, word = defaultdict[int, list[int]](list), list[int]()
    for place, token in enumerate(tokenizer.convert_ids_to_tokens(ids)[1:-1], start=1):  # without [BOS] and [EOS]
        word.append(place)
        if token.endswith("</w>"):
            name = str(tokenizer.decode([ids[place] for place in word])).strip()
            if name in CLASSES:
                found[CLASSES.index(name)] += word
            word = []
    return {number: torch.tensor(places) for number, places in found.items()}


def _score(
    unet: FeatureUNet,
    latents: Tensor,
    timestep: int,
    context: Tensor,
    masks: Tensor,
    tokens: Sequence[Tokens],
    scores: Scores,
) -> None:
    """Add the scores of B images with class maps ``masks`` (B,H,W) under ``context`` (B,L,C); ``tokens`` are by image."""
    _, attention = unet(latents, timestep, context.to(latents))
    levels = [maps.cpu() for maps in attention if maps is not None]
    names = ["", *(f"_{maps.shape[-1]}" for maps in levels)]
    for image, mask in enumerate(masks):
        shown = {number: pixels for number, pixels in _shown(mask) if number in tokens[image]}
        if not shown:
            continue
        own = [torch.stack([maps[image, tokens[image][number]].mean(dim=0) for number in shown]) for maps in levels]
        large = torch.stack([_enlarged(maps, mask.shape) for maps in own])
        large = torch.cat([large.mean(dim=0, keepdim=True), large]).flatten(2).numpy()  # (1+levels,classes,pixels)
        for place, (number, pixels) in enumerate(shown.items()):
            for name, area in zip(names, area_under_curve(large[:, place], pixels.flatten().numpy()), strict=True):
                scores.add(name, number, float(area))


def _enlarged(maps: Tensor, size: torch.Size) -> Tensor:
    """Maps (K,h,w) at the size of the image, (K,H,W)."""
    return F.interpolate(maps[None], tuple(size), mode="bilinear", align_corners=False)[0]


def _shown(mask: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Classes that enough pixels (H,W) show and enough do not, each with its pixels (H,W) bool."""
    for number in range(len(CLASSES)):
        shown = mask == number + 1
        if LEAST_PIXELS <= int(shown.sum()) <= mask.numel() - LEAST_PIXELS:
            yield number, shown


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Areas under the ROC curves of K scores (K,n) for the same ``positive`` (n,) bool, by the ranks (Mann and Whitney)."""
    ranks = rankdata(scores, axis=1)[:, positive].sum(axis=1)
    own = int(positive.sum())
    return (ranks - own * (own + 1) / 2) / (own * (positive.size - own))
