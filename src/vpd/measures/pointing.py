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
from vpd.measures.scenes import CAPTIONS, CLASSES, Scenes
from vpd.models.diffusion import FeatureUNet, load_denoiser
from vpd.models.prompts import encode_prompts
from vpd.models.text import load_text_encoder
from vpd.utils.progress import track

CHUNK = 64  # images at a time
LEAST_PIXELS = 32  # smaller parts of a class, or of what is not of the class, say little
ATTENTION = AttentionSpec.model_validate({"places": ["down", "up"], "limit": 1, "gradient": "detached"})
SINGLE = {"strategy": "class-names", "templates": "single"}
Tokens = Mapping[int, Tensor]  # number of a class -> positions of its tokens


class Scores:
    """Areas under the ROC curve by level and class, averaged over images and then over classes."""

    def __init__(self) -> None:
        self.areas: dict[tuple[str, int], list[float]] = defaultdict(list)

    def add(self, levels: Sequence[Tensor], tokens: Tokens, mask: Tensor) -> None:
        """Add those of one image, with maps (L,h,w) at each level, for the classes that have tokens; classes (H,W) + 1."""
        shown = {number: pixels for number, pixels in _shown(mask) if number in tokens}
        for number, pixels in shown.items():
            own = torch.stack([_enlarged(maps[tokens[number]].mean(dim=0), mask.shape) for maps in levels])
            areas = area_under_curve(torch.cat([own.mean(dim=0, keepdim=True), own]).flatten(1).numpy(), pixels)
            for name, area in zip(["", *(f"_{maps.shape[-1]}" for maps in levels)], areas.tolist(), strict=True):
                self.areas[name, number].append(area)

    def means(self) -> dict[str, float]:
        """Mean over classes by level: its side after a line, or nothing for the mean over levels."""
        names, means = dict.fromkeys(name for name, _ in self.areas), dict[str, float]()
        for name in names:
            means[name] = float(np.mean([np.mean(areas) for (level, _), areas in self.areas.items() if level == name]))
        return means


@torch.no_grad()
def pointing(pipeline: Path, latents: Tensor, scenes: Scenes, timestep: int, device: torch.device) -> dict[str, float]:
    """Scores of the pipeline in a folder on scenes with the scaled ``latents`` (N,4,h,w).

    Keys are ``class_auc`` and ``word_auc``, over the mean of all levels, and both followed by the side of a level's map.
    """
    text = load_text_encoder(pipeline)
    unet = FeatureUNet(load_denoiser(pipeline, "pretrained"), ATTENTION).to(device).eval()
    names = encode_prompts(PromptSpec.model_validate(SINGLE | {"length": text.length}), text, list(CLASSES))
    every = {number: torch.tensor([number]) for number in range(len(CLASSES))}
    scores = {"class": Scores(), "word": Scores()}
    chunks = torch.arange(len(scenes)).split(CHUNK)
    for chunk in track(chunks, len(chunks), f"words of {pipeline.name}", "batches"):
        forms = [("class", names.expand(len(chunk), -1, -1), [every] * len(chunk))]
        for number in range(CAPTIONS):
            captions = [scenes.captions[index][number] for index in chunk.tolist()]
            forms.append(("word", text(captions), [class_tokens(text.tokenizer, one, text.length) for one in captions]))
        for form, context, tokens in forms:
            _, attention = unet(latents[chunk].to(device), timestep, context.to(device))
            levels = [maps.cpu() for maps in attention if maps is not None]
            for place, index in enumerate(chunk.tolist()):
                scores[form].add([maps[place] for maps in levels], tokens[place], scenes.labels[index])
    return {f"{form}_auc{level}": mean for form, own in scores.items() for level, mean in own.means().items()}


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


def _enlarged(maps: Tensor, size: torch.Size) -> Tensor:
    """A map (h,w) at the size of the image, (H,W)."""
    return F.interpolate(maps[None, None], tuple(size), mode="bilinear", align_corners=False)[0, 0]


def _shown(mask: Tensor) -> Iterator[tuple[int, np.ndarray]]:
    """Classes that enough pixels (H,W) show and enough do not, each with its pixels (H * W,) bool."""
    for number in range(len(CLASSES)):
        shown = mask == number + 1
        if LEAST_PIXELS <= int(shown.sum()) <= mask.numel() - LEAST_PIXELS:
            yield number, shown.flatten().numpy()


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Areas under the ROC curves of K scores (K,n) for the same ``positive`` (n,) bool, by the ranks (Mann and Whitney)."""
    ranks = rankdata(scores, axis=1)[:, positive].sum(axis=1)
    own = int(positive.sum())
    return (ranks - own * (own + 1) / 2) / (own * (positive.size - own))
