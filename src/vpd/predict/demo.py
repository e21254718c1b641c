"""``vpd demo``: a room drawn from a prompt, where the prompt's words look, and what VPD sees in it, as one picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.ticker import MaxNLocator
from numpy import ndarray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vpd.config.schema import MeasuresSpec, PromptSpec
from vpd.datasets.dataset import image_tensor
from vpd.datasets.transforms import normalise
from vpd.evaluation.attention import overlay
from vpd.evaluation.drawing import LINE, FigureGrid, caption, corner_note, show
from vpd.measures.drawing import draw
from vpd.measures.pointing import ATTENTION, SINGLE, class_tokens
from vpd.measures.scenes import CLASSES
from vpd.models.diffusion import FeatureUNet, load_denoiser, load_vae
from vpd.models.prompts import encode_prompts
from vpd.models.text import load_text_encoder
from vpd.predict.network import TrainedNetwork
from vpd.predict.panels import depth_scale, referred, scaled, segments
from vpd.predict.predictions import DepthMap, Prediction, ReferredObject, Segments
from vpd.predict.prompt import Prompt
from vpd.predict.run import infer
from vpd.predict.tasks import build_task

# Inches.
CELL = 2.2
SCALE = 0.5  # beside a cell, with its numbers
ENTRIES = 10  # of the legend


def demo(folder: Path, prompt: Prompt, spec: MeasuresSpec, form: str, networks: Sequence[TrainedNetwork]) -> FigureGrid:
    """Draw a prompt with the pipeline in ``folder``, and below what the networks see in the image.

    ``spec`` says how it draws, and ``form``, as ``sharpest`` names it, which attention maps are shown.
    """
    (drawn,) = draw(folder, [prompt.text], spec, torch.device("cpu"), f"drawing with {folder.name}")
    image, found = drawn.permute(1, 2, 0).contiguous().numpy(), []
    for network in networks:
        task = build_task(network, prompt.expression, prompt.room)
        found.append(infer(network.spec, task, image, "the drawn room"))
    return compose(image, word_maps(folder, image, prompt, form, spec.timestep), found, f"“{prompt.text}”")


@torch.no_grad()
def word_maps(folder: Path, image: ndarray, prompt: Prompt, form: str, timestep: int) -> dict[str, Tensor]:
    """Return the attention map (H, W) of each class that the prompt names on an image (H, W, 3), as ``pointing`` does."""
    text = load_text_encoder(folder)
    if form.startswith("word"):
        context, tokens = text([prompt.text]), class_tokens(text.tokenizer, prompt.text, text.length)
    else:
        single = PromptSpec.model_validate(SINGLE | {"length": text.length})
        context = encode_prompts(single, text, list(CLASSES))[None]
        tokens = {number: torch.tensor([number]) for number in range(len(CLASSES))}
    vae = load_vae(folder)
    latents = vae.encode(image_tensor(normalise(image))[None]).latent_dist.mean * vae.config.scaling_factor
    _, attention = FeatureUNet(load_denoiser(folder, "pretrained"), ATTENTION).eval()(latents, timestep, context)
    side = form.rpartition("_")[2]
    levels = [maps for maps in attention if maps is not None and side in ("auc", str(maps.shape[-1]))]
    enlarged = [F.interpolate(maps, image.shape[:2], mode="bilinear", align_corners=False)[0] for maps in levels]
    maps = torch.stack(enlarged).mean(dim=0)
    return {name: maps[tokens[CLASSES.index(name)]].mean(dim=0) for name in prompt.classes}


def sharpest(measures: Mapping[str, float]) -> str:
    """Return the form of attention maps that points best of those measured; without any, all levels of the words."""
    return max(measures, key=lambda name: measures[name], default="word_auc")


def compose(image: ndarray, maps: Mapping[str, Tensor], found: Sequence[Prediction], title: str) -> FigureGrid:
    """Draw the image with a map for each word, and below the predictions; the legend has a cell of its own."""
    shape = image.shape[:2]
    rows = [[shape] * (1 + len(maps)), [shape] * (1 + len(found))]
    figure = FigureGrid(rows, title, [LINE, 0.12 + LINE], right=SCALE, cell=CELL)
    size = scaled(image, smooth=True).shape[:2]
    picture = np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))
    first, *cells = figure.cells[0]
    show(first, picture)
    caption(first, "drawn from the prompt")
    for axes, (word, heat) in zip(cells, maps.items(), strict=True):
        large = F.interpolate(heat[None, None], size, mode="bicubic", align_corners=False)[0, 0]
        show(axes, overlay(image_tensor(picture), large))
        caption(axes, f"where “{word}” looks")
    places = iter(figure.cells[1])
    for one in found:
        axes = next(places)
        if isinstance(one, Segments):
            tinted, legend = segments(one, picture)
            show(axes, tinted)
            caption(axes, "segmentation")
            beside = next(places)
            beside.axis("off")
            beside.legend(handles=legend[:ENTRIES], loc="upper left", fontsize=9, frameon=False)
        elif isinstance(one, ReferredObject):
            show(axes, referred(picture, one.mask))
            caption(axes, f"“{one.text}”")
            if not one.mask.any():
                corner_note(axes, "nothing found")
        elif isinstance(one, DepthMap):
            _depth(figure, axes, one)
    return figure


def _depth(figure: FigureGrid, axes: Axes, found: DepthMap) -> None:
    """Show depth with its scale beside the cell."""
    scale, box = depth_scale(found.depth), axes.get_position()
    show(axes, scaled(found.depth, smooth=True), **scale)
    caption(axes, f"depth in m, {found.scene}")
    bar = figure.axes(box.x1 * figure.width + 0.1, box.y0 * figure.height, 0.12, CELL)
    figure.figure.colorbar(ScalarMappable(**scale), cax=bar, ticks=MaxNLocator(6))
