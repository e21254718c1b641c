"""``predictions.png``: image, ground truth and prediction of some validation samples, one column each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Patch
from torch import Tensor

from vpd.config.schema import DepthSpec, ReferringSpec, SegmentationSpec, Spec
from vpd.datasets.dataset import Dataset
from vpd.evaluation.attention import draw_attention, records_attention
from vpd.evaluation.drawing import CELL, LINE, UNLABELLED, FigureGrid, caption, corner_note, palette, pixels, show, wrap
from vpd.evaluation.inference import Predict, estimate_depth, refer, segment
from vpd.evaluation.results import ATTENTION, PREDICTIONS
from vpd.evaluation.scores import IGNORED, DepthScores, ReferringScores
from vpd.models.base import Network

if TYPE_CHECKING:
    from vpd.models.network import VPD

LEGEND_ENTRIES = 30
MASK = np.array([0.93, 0.11, 0.14])
HEADLINES = {
    "segmentation": "mIoU {miou_ss:.1f} %",
    "referring": "overall IoU {oiou:.1f} %, mean IoU {miou:.1f} %",
    "depth": "RMSE {rmse:.3f} m, δ1 {delta1:.3f}",
}
Column = tuple[np.ndarray, np.ndarray, str]  # pictures of ground truth and prediction, and a note on the latter


def draw_panels(
    spec: Spec, model: Network, predict: Predict, dataset: Dataset, metrics: dict[str, float], folder: Path
) -> None:
    """Write ``predictions.png`` and, if the model records attention, ``attention.png`` into ``folder``."""
    samples = [dataset.sample(index) for index in spread(len(dataset), spec.evaluation.panels)]
    title = f"{spec.name}, seed {spec.seeds[0]}: {HEADLINES[spec.task].format(**metrics)}"
    title += f" ({metrics['miou_ms']:.1f} % multi-scale + flip)" if "miou_ms" in metrics else ""
    DRAWERS[spec.task](spec, predict, samples, dataset.classes, title).save(folder / PREDICTIONS)
    if records_attention(spec):
        draw_attention(spec, cast("VPD", model), samples, dataset.classes).save(folder / ATTENTION)
    else:  # other settings may have left one
        (folder / ATTENTION).unlink(missing_ok=True)


def spread(count: int, wanted: int) -> list[int]:
    """Return ``wanted`` indices spread evenly over ``count`` samples, or all of them."""
    wanted = min(wanted, count)
    return [(2 * place + 1) * count // (2 * wanted) for place in range(wanted)]


def _figure(
    samples: list[dict],
    title: str,
    columns: Sequence[Column],
    captions: Sequence[str] = (),
    lines: int = 1,
    right: float = 0.0,
    **style: Any,
) -> FigureGrid:
    """Return a figure with captions of at most ``lines`` lines and ``right`` inches kept free; ``style`` is imshow's."""
    shapes = [tuple(sample["image"].shape[-2:]) for sample in samples]
    figure = FigureGrid([shapes] * 3, title, [0.1 + lines * LINE if captions else 0.0, 0.0, 0.0], right)
    for row, name in zip(figure.cells, ("image", "ground truth", "prediction"), strict=True):
        row[0].set_ylabel(name, fontsize=10, labelpad=5)
    for cells, sample, (truth, prediction, note) in zip(zip(*figure.cells, strict=True), samples, columns, strict=True):
        show(cells[0], pixels(sample["image"]))
        show(cells[1], truth, **style)
        show(cells[2], prediction, **style)
        corner_note(cells[2], note)
    for axes, text in zip(figure.cells[0], captions, strict=False):
        caption(axes, text, lines)
    return figure


def _segmentation_figure(
    spec: SegmentationSpec, predict: Predict, samples: list[dict], classes: list[str], title: str
) -> FigureGrid:
    """Return the figure of class maps with a legend of the classes on it, largest first."""
    predictions = [labels["ss"] for _, labels in segment(predict, samples, spec.evaluation)]
    truths = [sample["label"] for sample in samples]
    colours, columns = palette(len(classes)), []
    for truth, prediction in zip(truths, predictions, strict=True):
        right = (truth == prediction)[truth != IGNORED].double().mean().item()
        columns.append((coloured(truth, colours), coloured(prediction, colours), f"{100 * right:.0f} % right"))
    entries = legend_classes([*truths, *predictions], len(classes))
    handles = [Patch(color=colours[index], label=classes[index]) for index in entries]
    if any((truth == IGNORED).any() for truth in truths):
        handles.append(Patch(color=UNLABELLED, label="unlabelled"))
    width = 0.6 + 0.085 * max(len(str(handle.get_label())) for handle in handles)
    figure = _figure(samples, title, columns, right=width)
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


def _referring_figure(
    spec: ReferringSpec, predict: Predict, samples: list[dict], classes: list[str], title: str
) -> FigureGrid:
    """Return the figure of masks over the images, with each expression above its column."""
    texts, columns = [f"“{sample['text']}”" for sample in samples], []
    for sample, logits in refer(predict, samples, spec.evaluation):
        truth, prediction, scores = sample["label"].bool(), logits.argmax(0).bool(), ReferringScores()
        scores.add(truth, prediction)
        masks = masked(sample["image"], truth), masked(sample["image"], prediction)
        columns.append((*masks, f"IoU {scores.overall():.0f} %"))
    return _figure(samples, title, columns, texts, lines=min(5, max(len(wrap(text, CELL)) for text in texts)))


def masked(image: Tensor, mask: Tensor) -> np.ndarray:
    """Return the image in dimmed grey with the mask's pixels tinted."""
    picture = pixels(image)
    grey = np.repeat(0.25 + 0.6 * picture.mean(-1, keepdims=True), 3, -1)
    return np.where(mask.numpy()[..., None], 0.35 * picture + 0.65 * MASK, grey)


def _depth_figure(spec: DepthSpec, predict: Predict, samples: list[dict], classes: list[str], title: str) -> FigureGrid:
    """Return the figure of depth maps on one scale of metres."""
    scenes, columns = [int(sample["class_id"]) for sample in samples], []
    for sample, metres in estimate_depth(predict, samples, spec.evaluation):
        scores = DepthScores(spec.evaluation)
        scores.add(sample["id"], sample["depth"], metres)
        truth = np.ma.masked_less_equal(sample["depth"].numpy(), 0)
        columns.append((truth, metres.numpy(), f"RMSE {scores.totals['rmse']:.2f} m"))
    scale = Normalize(
        min(float(truth.min()) for truth, *_ in columns), max(float(truth.max()) for truth, *_ in columns)
    )
    colours = mpl.colormaps["magma_r"].with_extremes(bad=UNLABELLED)
    captions = [classes[scene].replace("_", " ") if scene >= 0 else "scene unknown" for scene in scenes]
    figure = _figure(samples, title, columns, captions, right=0.85, cmap=colours, norm=scale)
    low, high = figure.cells[2][-1].get_position(), figure.cells[1][-1].get_position()
    bar = figure.figure.add_axes((low.x1 + 0.12 / figure.width, low.y0, 0.14 / figure.width, high.y1 - low.y0))
    figure.figure.colorbar(ScalarMappable(scale, colours), cax=bar, label="depth (m)")
    return figure


DRAWERS: dict[str, Callable[..., FigureGrid]] = {
    "segmentation": _segmentation_figure,
    "referring": _referring_figure,
    "depth": _depth_figure,
}
