"""Scores of the three tasks, accumulated over a whole split."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from vpd.config.schema import DepthEvaluation, DepthSpec, ReferringSpec, SegmentationSpec
from vpd.evaluation.inference import Predict, estimate_depth, refer, segment
from vpd.evaluation.windows import resize
from vpd.utils.errors import UserError

IGNORED = 255


class SegmentationScores:
    """Pixel counts (truth x prediction) over all images; a class with nothing to count scores nan."""

    def __init__(self, classes: int) -> None:
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)

    def add(self, truth: Tensor, prediction: Tensor) -> None:
        """Count the pixels of one label map; pixels whose ``truth`` is 255 are left out."""
        classes = len(self.confusion)
        counted = truth != IGNORED
        cells = truth[counted] * classes + prediction[counted]
        self.confusion += torch.bincount(cells, minlength=classes * classes).view(classes, classes)

    def iou(self) -> Tensor:
        """Return intersection over union (K) per class."""
        hits = self.confusion.diagonal()
        return hits.double() / (self.confusion.sum(0) + self.confusion.sum(1) - hits)

    def recall(self) -> Tensor:
        """Return the share of each class's labelled pixels that were found (K)."""
        return self.confusion.diagonal().double() / self.confusion.sum(1)

    def values(self, protocol: str) -> Iterator[tuple[str, float]]:
        """Yield mIoU, mAcc and aAcc in percent, named with ``protocol``; UserError if no pixel was labelled."""
        labelled = self.confusion.sum()
        if not labelled:
            raise UserError("no pixel of the validation split is labelled; check the annotations of the dataset")
        yield f"miou_{protocol}", 100 * self.iou().nanmean().item()
        yield f"macc_{protocol}", 100 * self.recall().nanmean().item()
        yield f"aacc_{protocol}", 100 * (self.confusion.diagonal().sum().double() / labelled).item()


def evaluate_segmentation(
    predict: Predict, samples: Iterable[dict], spec: SegmentationSpec, classes: int
) -> Iterator[tuple[str, float]]:
    """Yield (name, value) over all samples at original size: ``*_ss`` and, for multi-scale + flip, ``miou_ms``."""
    scores = {"ss": SegmentationScores(classes), "ms": SegmentationScores(classes)}
    for sample, labels in segment(predict, samples, spec.evaluation):
        for protocol, prediction in labels.items():
            scores[protocol].add(sample["label"], prediction)
    yield from scores["ss"].values("ss")
    if spec.evaluation.multi_scale:
        yield next(scores["ms"].values("ms"))


class ReferringScores:
    """Intersections and unions, in pixels, of all sentences (R7, R8)."""

    def __init__(self) -> None:
        self.intersections: list[int] = []
        self.unions: list[int] = []

    def add(self, truth: Tensor, prediction: Tensor) -> None:
        """Count one sentence's masks, both bool (H, W)."""
        self.intersections.append(int((truth & prediction).sum()))
        self.unions.append(int((truth | prediction).sum()))

    def overall(self) -> float:
        """Return the overall IoU in percent: all intersections over all unions."""
        return 100 * sum(self.intersections) / max(sum(self.unions), 1)

    def values(self, thresholds: Iterable[float]) -> Iterator[tuple[str, float]]:
        """Yield oiou, miou and, for each threshold t, the share of sentences with IoU >= t as p<100 t>, in percent."""
        # Two empty masks count as 0, as in the released code.
        ious = [hit / max(area, 1) for hit, area in zip(self.intersections, self.unions, strict=True)]
        yield "oiou", self.overall()
        yield "miou", 100 * sum(ious) / len(ious)
        for threshold in thresholds:
            yield f"p{round(100 * threshold)}", 100 * sum(iou >= threshold for iou in ious) / len(ious)


def native_mask(logits: Tensor, height: int, width: int) -> Tensor:
    """Return the bool mask (height, width) of logits (2, h, w) brought to that size bilinearly."""
    return resize(logits, height, width).argmax(0).bool()


def evaluate_referring(
    predict: Predict, samples: Iterable[dict], spec: ReferringSpec, classes: int
) -> Iterator[tuple[str, float]]:
    """Yield (name, value) over all sentences at the input size, and oiou_native if samples carry ``native_label``."""
    scores, native = ReferringScores(), ReferringScores()
    for sample, logits in refer(predict, samples, spec.evaluation):
        scores.add(sample["label"].bool(), logits.argmax(0).bool())
        if "native_label" in sample:
            truth = sample["native_label"].bool()
            native.add(truth, native_mask(logits, *truth.shape))
    yield from scores.values(spec.evaluation.thresholds)
    if native.unions:
        yield "oiou_native", native.overall()


def depth_errors(truth: Tensor, prediction: Tensor) -> dict[str, float]:
    """Return rmse (metres), delta1-3, rel and log10 of positive depths (N) in metres."""
    truth, prediction = truth.double(), prediction.double()
    ratio = torch.maximum(truth / prediction, prediction / truth)
    errors = {
        "rmse": (truth - prediction).square().mean().sqrt(),
        **{f"delta{power}": (ratio < 1.25**power).double().mean() for power in (1, 2, 3)},
        "rel": ((truth - prediction).abs() / truth).mean(),
        "log10": (truth.log10() - prediction.log10()).abs().mean(),
    }
    return {name: value.item() for name, value in errors.items()}


def scored_pixels(depth: Tensor, settings: DepthEvaluation) -> Tensor:
    """Return which pixels (H, W) are scored: inside the crop and min < depth < max (D12)."""
    top, bottom, left, right = settings.crop
    inside = torch.zeros_like(depth, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    return inside & (depth > settings.min_depth) & (depth < settings.max_depth)


class DepthScores:
    """Errors of each image, added up; every image counts the same (D12, D13)."""

    def __init__(self, settings: DepthEvaluation) -> None:
        self.settings = settings
        self.totals: dict[str, float] = {}
        self.count = 0

    def add(self, name: str, truth: Tensor, prediction: Tensor) -> None:
        """Score one image's metres (H, W), clamped to [min, max]; UserError if image ``name`` has no valid depth."""
        scored, low, high = scored_pixels(truth, self.settings), self.settings.min_depth, self.settings.max_depth
        if not scored.any():
            crop = list(self.settings.crop)
            raise UserError(f"sample {name} has no depth between {low} and {high} m in evaluation.crop {crop}")
        for metric, value in depth_errors(truth[scored], prediction.clamp(low, high)[scored]).items():
            self.totals[metric] = self.totals.get(metric, 0.0) + value
        self.count += 1

    def values(self) -> Iterator[tuple[str, float]]:
        """Yield each error's mean over images."""
        for metric, total in self.totals.items():
            yield metric, total / self.count


def evaluate_depth(
    predict: Predict, samples: Iterable[dict], spec: DepthSpec, classes: int
) -> Iterator[tuple[str, float]]:
    """Yield (name, value) over all images."""
    scores = DepthScores(spec.evaluation)
    for sample, metres in estimate_depth(predict, samples, spec.evaluation):
        scores.add(sample["id"], sample["depth"], metres)
    yield from scores.values()
