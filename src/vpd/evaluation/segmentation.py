"""Semantic segmentation scores: mIoU, mAcc and aAcc from one confusion matrix over the whole split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from vpd.config.schema import SegmentationSpec
from vpd.evaluation.inference import Predict, segment
from vpd.utils.errors import UserError

IGNORED = 255


class SegmentationScores:
    """Pixel counts (truth x prediction) accumulated over images; a class with nothing to count scores nan."""

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
