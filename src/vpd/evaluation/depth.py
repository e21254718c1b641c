"""Depth scores: errors of each image inside the evaluation crop, averaged over images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from vpd.config.schema import DepthEvaluation, DepthSpec
from vpd.evaluation.inference import Predict, estimate_depth
from vpd.utils.errors import UserError


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
        scored = scored_pixels(truth, self.settings)
        if not scored.any():
            low, high, crop = self.settings.min_depth, self.settings.max_depth, self.settings.crop
            raise UserError(f"sample {name} has no depth between {low} and {high} m in evaluation.crop {list(crop)}")
        clamped = prediction.clamp(self.settings.min_depth, self.settings.max_depth)
        for metric, value in depth_errors(truth[scored], clamped[scored]).items():
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
