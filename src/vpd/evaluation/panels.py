"""``predictions.png``: image, ground truth and prediction of some validation samples, one column each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Patch
from torch import Tensor, nn

from vpd.config.schema import DepthSpec, ReferringSpec, SegmentationSpec, Spec
from vpd.datasets.dataset import Dataset
from vpd.evaluation.attention import draw_attention, records_attention
from vpd.evaluation.depth import DepthScores
from vpd.evaluation.drawing import (
    CELL,
    LINE,
    UNLABELLED,
    FigureGrid,
    caption,
    corner_note,
    palette,
    pixels,
    show,
    spread,
    wrap,
)
from vpd.evaluation.inference import Predict, estimate_depth, refer, segment
from vpd.evaluation.referring import ReferringScores
from vpd.evaluation.segmentation import IGNORED

if TYPE_CHECKING:
    from vpd.models.network import VPD

ROWS = ("image", "ground truth", "prediction")
LEGEND_ENTRIES = 30
MASK = np.array([0.93, 0.11, 0.14])


def draw_panels(
    spec: Spec, model: nn.Module, predict: Predict, dataset: Dataset, metrics: dict[str, float], folder: Path
) -> None:
    """Write ``predictions.png`` and, if the model records attention, ``attention.png`` into ``folder``."""
    samples = [dataset.sample(index) for index in spread(len(dataset), spec.evaluation.panels)]
    DRAWERS[spec.task](spec, predict, samples, dataset.classes, headline(spec, metrics)).save(
        folder / "predictions.png"
    )
    if records_attention(spec):
        draw_attention(spec, cast("VPD", model), samples, dataset.classes).save(folder / "attention.png")


def headline(spec: Spec, metrics: dict[str, float]) -> str:
    """Return the figure's title: the experiment and its main scores."""
    if spec.task == "segmentation":
        scores = f"mIoU {metrics['miou_ss']:.1f} %"
        scores += f" ({metrics['miou_ms']:.1f} % multi-scale + flip)" if "miou_ms" in metrics else ""
    elif spec.task == "referring":
        scores = f"overall IoU {metrics['oiou']:.1f} %, mean IoU {metrics['miou']:.1f} %"
    else:
        scores = f"RMSE {metrics['rmse']:.3f} m, δ1 {metrics['delta1']:.3f}"
    return f"{spec.name}, seed {spec.seeds[0]}: {scores}"


def start(samples: list[dict], title: str, above: float = 0.0, right: float = 0.0) -> FigureGrid:
    """Return a figure with its row titles and, ``above`` inches under the title, the images in the first row."""
    shapes = [tuple(sample["image"].shape[-2:]) for sample in samples]
    figure = FigureGrid([shapes] * len(ROWS), title, [above, 0.0, 0.0], right)
    for row, name in zip(figure.cells, ROWS, strict=True):
        row[0].set_ylabel(name, fontsize=10, labelpad=5)
    for axes, sample in zip(figure.cells[0], samples, strict=True):
        show(axes, pixels(sample["image"]))
    return figure


# --------------------------------------------------------------------------------------------------------- segmentation
def segmentation_figure(
    spec: SegmentationSpec, predict: Predict, samples: list[dict], classes: list[str], title: str
) -> FigureGrid:
    """Return the figure of class maps with a legend of the classes on it, largest first."""
    predictions = [labels["ss"] for _, labels in segment(predict, samples, spec.evaluation)]
    truths = [sample["label"] for sample in samples]
    shown = legend_classes([*truths, *predictions], len(classes))
    colours = palette(len(classes))
    handles = [Patch(color=colours[index], label=classes[index]) for index in shown]
    if any((truth == IGNORED).any() for truth in truths):
        handles.append(Patch(color=UNLABELLED, label="unlabelled"))
    figure = start(samples, title, right=0.6 + 0.085 * max(len(str(handle.get_label())) for handle in handles))
    for column, (truth, prediction) in enumerate(zip(truths, predictions, strict=True)):
        show(figure.cells[1][column], coloured(truth, colours))
        show(figure.cells[2][column], coloured(prediction, colours))
        counted = truth != IGNORED
        right = (truth == prediction)[counted].double().mean().item() if counted.any() else float("nan")
        corner_note(figure.cells[2][column], f"{100 * right:.0f} % right")
    place = (figure.right_edge / figure.width, figure.cells[0][0].get_position().y1)
    figure.figure.legend(handles=handles, loc="upper left", bbox_to_anchor=place, fontsize=9, frameon=False)
    return figure


def legend_classes(maps: list[Tensor], classes: int) -> list[int]:
    """Return the classes that cover most pixels of ``maps``, largest first."""
    areas = torch.stack([labels[labels != IGNORED].bincount(minlength=classes) for labels in maps]).sum(0)
    order = areas.argsort(descending=True, stable=True).tolist()
    return [index for index in order if areas[index]][:LEGEND_ENTRIES]


def coloured(labels: Tensor, colours: np.ndarray) -> np.ndarray:
    """Return class labels (H, W) as RGB (H, W, 3)."""
    table = np.vstack([colours, UNLABELLED])
    return table[labels.where(labels != IGNORED, len(colours)).numpy()]


# ----------------------------------------------------------------------------------------------------------- referring
def referring_figure(
    spec: ReferringSpec, predict: Predict, samples: list[dict], classes: list[str], title: str
) -> FigureGrid:
    """Return the figure of masks over the images, with each expression above its column."""
    texts = [f"“{sample['text']}”" for sample in samples]
    lines = min(5, max(len(wrap(text, CELL)) for text in texts))
    figure = start(samples, title, above=0.1 + lines * LINE)
    for column, (sample, logits) in enumerate(refer(predict, samples, spec.evaluation)):
        caption(figure.cells[0][column], texts[column], lines)
        truth, prediction = sample["label"].bool(), logits.argmax(0).bool()
        show(figure.cells[1][column], masked(sample["image"], truth))
        show(figure.cells[2][column], masked(sample["image"], prediction))
        scores = ReferringScores()
        scores.add(truth, prediction)
        corner_note(figure.cells[2][column], f"IoU {scores.overall():.0f} %")
    return figure


def masked(image: Tensor, mask: Tensor) -> np.ndarray:
    """Return the image in dimmed grey with the mask's pixels tinted."""
    picture = pixels(image)
    grey = np.repeat(0.25 + 0.6 * picture.mean(-1, keepdims=True), 3, -1)
    return np.where(mask.numpy()[..., None], 0.35 * picture + 0.65 * MASK, grey)


# --------------------------------------------------------------------------------------------------------------- depth
def depth_figure(spec: DepthSpec, predict: Predict, samples: list[dict], classes: list[str], title: str) -> FigureGrid:
    """Return the figure of depth maps on one scale of metres."""
    predictions = [metres for _, metres in estimate_depth(predict, samples, spec.evaluation)]
    truths = [np.ma.masked_less_equal(sample["depth"].numpy(), 0) for sample in samples]
    scale = Normalize(min(float(truth.min()) for truth in truths), max(float(truth.max()) for truth in truths))
    colours = mpl.colormaps["magma_r"].with_extremes(bad=UNLABELLED)
    figure = start(samples, title, above=0.1 + LINE, right=0.85)
    for column, (sample, truth, metres) in enumerate(zip(samples, truths, predictions, strict=True)):
        scene = int(sample["class_id"])
        caption(figure.cells[0][column], classes[scene].replace("_", " ") if scene >= 0 else "scene unknown")
        show(figure.cells[1][column], truth, cmap=colours, norm=scale)
        show(figure.cells[2][column], metres.numpy(), cmap=colours, norm=scale)
        scores = DepthScores(spec.evaluation)
        scores.add(sample["id"], sample["depth"], metres)
        corner_note(figure.cells[2][column], f"RMSE {scores.totals['rmse']:.2f} m")
    low, high = figure.cells[2][-1].get_position(), figure.cells[1][-1].get_position()
    bar = figure.figure.add_axes((low.x1 + 0.12 / figure.width, low.y0, 0.14 / figure.width, high.y1 - low.y0))
    figure.figure.colorbar(ScalarMappable(scale, colours), cax=bar, label="depth (m)")
    return figure


DRAWERS: dict[str, Callable[..., FigureGrid]] = {
    "segmentation": segmentation_figure,
    "referring": referring_figure,
    "depth": depth_figure,
}
