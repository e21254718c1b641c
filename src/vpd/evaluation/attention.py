"""``attention.png``: where a U-Net's or transformer's attention looks for each word, laid over the image (Figure 5)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import T5Tokenizer

from vpd.config.schema import SegmentationSpec, Spec, VPDModel
from vpd.evaluation.drawing import LINE, FigureGrid, caption, pixels, show
from vpd.evaluation.inference import Predict, to_model
from vpd.evaluation.scores import IGNORED
from vpd.evaluation.windows import SlidingWindow, resize, scaled_image
from vpd.models.text import WORD_END, WORD_START

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from vpd.models.network import VPD

WORDS = 10
Word = tuple[str, Tensor]  # a word and its attention map (H, W) at the size of the image


def records_attention(spec: Spec) -> bool:
    """Return whether the model records attention maps that belong to words: its classes' names or an expression's."""
    if not isinstance(spec.model, VPDModel):
        return False
    return bool(spec.model.attention.places) and spec.model.prompt.strategy in ("class-names", "expression")


def attention_of(model: VPD) -> Predict:
    """Return ``model``'s attention (B, L, H, W) as a function of a batch: the mean over levels at the input's size."""

    def predict(batch: dict) -> Tensor:
        levels = [maps.float() for maps in _recorded(model, to_model(batch, model)) if maps is not None]
        size = batch["image"].shape[-2:]
        enlarged = [F.interpolate(maps, size, mode="bilinear", align_corners=False) for maps in levels]
        return torch.stack(enlarged).mean(0).cpu()

    return predict


def _recorded(model: VPD, batch: dict) -> list[Tensor | None]:
    """Return the attention that the network itself records: behind a transformer's pyramid there is none (U5)."""
    if getattr(model, "neck", None) is None:
        return model.features(batch).attention
    found: list[list[Tensor | None]] = []
    handle = model.unet.register_forward_hook(lambda module, given, result: found.append(result[1]))
    try:
        model.features(batch)
    finally:
        handle.remove()
    return found[-1]


def class_words(sample: dict, attention: Predict, spec: SegmentationSpec, classes: list[str]) -> list[Word]:
    """Return the classes of the image's ground truth, largest first, with their maps over all windows."""
    image = scaled_image(sample["image"], spec.evaluation, 1.0)
    window = SlidingWindow(image, spec.evaluation.crop, spec.evaluation.stride)
    for corner in window.corners:
        key = f"{sample['id']}/1.0/{corner[0]},{corner[1]}/plain"
        batch = {"image": window.window(corner)[None], "id": [sample["id"]], "key": [key]}
        window.add(corner, attention(batch)[0])
    maps = resize(window.mean(), *sample["image"].shape[-2:])
    areas = sample["label"][sample["label"] != IGNORED].bincount(minlength=len(classes))
    order = areas.argsort(descending=True, stable=True)
    return [(classes[index], maps[index]) for index in order[: int((areas > 0).sum())].tolist()]


def sentence_words(sample: dict, attention: Predict, tokenizer: CLIPTokenizer | T5Tokenizer, length: int) -> list[Word]:
    """Return the words of the expression in order, each with the mean map of its tokens."""
    texts = {"text": [sample["text"]], "id": [sample["id"]], "key": [sample["image_id"]]}
    maps = attention({"image": sample["image"][None], **texts})[0]
    places = (_t5_places if isinstance(tokenizer, T5Tokenizer) else _clip_places)(tokenizer, sample["text"], length)
    return [(word, maps[numbers].mean(0)) for word, numbers in places]


def _clip_places(tokenizer: Any, text: str, length: int) -> Iterator[tuple[str, list[int]]]:
    """Yield the words that CLIP reads, with the numbers of their tokens; the last token of a word says so."""
    ids, places = tokenizer(text, truncation=True, max_length=length).input_ids, list[int]()
    for place, token in enumerate(tokenizer.convert_ids_to_tokens(ids)[1:-1], start=1):  # without [BOS] and [EOS]
        places.append(place)
        if token.endswith(WORD_END):
            yield str(tokenizer.decode([ids[place] for place in places])).strip(), places
            places = []


def _t5_places(tokenizer: Any, text: str, length: int) -> Iterator[tuple[str, list[int]]]:
    """Yield the words that T5 reads in lower case (U7); the first token of a word says so."""
    tokens = tokenizer.tokenize(text.lower())[: length - 1]
    starts = [place for place, token in enumerate(tokens) if token.startswith(WORD_START)]
    for start, end in pairwise([*starts, len(tokens)]):
        yield "".join(tokens[start:end]).removeprefix(WORD_START), list(range(start, end))


def overlay(image: Tensor, attention: Tensor) -> np.ndarray:
    """Return the dimmed image with the map on it as heat, from the map's least to its greatest value."""
    low, high = attention.min(), attention.max()
    heat = ((attention - low) / (high - low).clamp(min=1e-12)).numpy()
    grey = np.repeat(pixels(image).mean(-1, keepdims=True), 3, -1)
    strength = 0.1 + 0.7 * heat[..., None]
    return (1 - strength) * 0.6 * grey + strength * mpl.colormaps["inferno"](heat)[..., :3]


def draw_attention(spec: Spec, model: VPD, samples: list[dict], classes: list[str]) -> FigureGrid:
    """Return a figure with one row per sample: the image, then one overlay for each of its first words."""
    attention = attention_of(model)
    if isinstance(spec, SegmentationSpec):
        rows = [class_words(sample, attention, spec, classes)[:WORDS] for sample in samples]
    else:
        assert isinstance(spec.model, VPDModel)
        assert model.text is not None
        length, tokenizer = spec.model.prompt.length, model.text.tokenizer
        rows = [sentence_words(sample, attention, tokenizer, length)[:WORDS] for sample in samples]
    shapes = [[tuple(s["image"].shape[-2:])] * (1 + len(words)) for s, words in zip(samples, rows, strict=True)]
    title = f"{spec.name}: cross-attention of each word, least to most"
    figure = FigureGrid(shapes, title, [0.1 + LINE] * len(rows), cell=1.4)
    for cells, sample, words in zip(figure.cells, samples, rows, strict=True):
        show(cells[0], pixels(sample["image"]))
        for axes, (word, heat) in zip(cells[1:], words, strict=True):
            show(axes, overlay(sample["image"], heat))
            caption(axes, word)
    return figure
