"""Referring segmentation scores: overall and mean IoU and precision over every sentence of the split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch.nn.functional as F
from torch import Tensor

from vpd.config.schema import ReferringSpec
from vpd.evaluation.inference import Predict, refer


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

    def ious(self) -> list[float]:
        """Return each sentence's IoU; two empty masks count as 0, as in the released code."""
        return [hit / max(area, 1) for hit, area in zip(self.intersections, self.unions, strict=True)]

    def values(self, thresholds: Iterable[float]) -> Iterator[tuple[str, float]]:
        """Yield oiou, miou and, for each threshold t, the share of sentences with IoU >= t as p<100 t>, in percent."""
        ious = self.ious()
        yield "oiou", self.overall()
        yield "miou", 100 * sum(ious) / len(ious)
        for threshold in thresholds:
            yield f"p{round(100 * threshold)}", 100 * sum(iou >= threshold for iou in ious) / len(ious)


def native_mask(logits: Tensor, height: int, width: int) -> Tensor:
    """Return the bool mask (height, width) of logits (2, h, w) brought to that size bilinearly."""
    native = F.interpolate(logits[None], size=(height, width), mode="bilinear", align_corners=False)[0]
    return native.argmax(0).bool()


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
