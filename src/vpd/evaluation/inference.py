"""Inference protocols of the three tasks: a stream of samples in, one prediction per sample out, in order.

``predict`` is the network: it maps a batch (``image``, ``id``, ``key`` and what else the task needs) to a tensor. All
inputs of a protocol have one size, so windows, mirrored copies, scales and samples share batches of ``batch_size``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from vpd.config.schema import DepthEvaluation, ReferringEvaluation, SegmentationEvaluation
from vpd.evaluation.windows import SlidingWindow, depth_windows, resize, scaled_image
from vpd.utils.errors import UserError

Predict = Callable[[dict], Tensor]
Sink = Callable[[Tensor], None]
Request = tuple[dict, Sink]
"""One network input and what takes its output."""


class Work(Protocol):
    """One sample on its way through the network."""

    sample: dict

    def requests(self) -> Iterator[Request]:
        """Yield every network input of the sample."""

    def result(self) -> Any:
        """Return the prediction; called once every request was answered."""


def answer(predict: Predict, requests: list[Request]) -> None:
    """Run all ``requests`` as one batch."""
    inputs = [values for values, _ in requests]
    batch: dict[str, Any] = {name: [values[name] for values in inputs] for name in inputs[0]}
    for name, values in batch.items():
        if isinstance(values[0], Tensor):
            batch[name] = torch.stack(values)
    for (_, sink), output in zip(requests, predict(batch), strict=True):
        sink(output)


def stream(predict: Predict, works: Iterable[Work], batch_size: int) -> Iterator[tuple[dict, Any]]:
    """Yield (sample, result) of each work in order, with full batches across works."""
    queue: list[Request] = []
    asked: list[Work] = []
    for work in works:
        for request in work.requests():
            queue.append(request)
            if len(queue) == batch_size:
                answer(predict, queue)
                queue = []
                yield from ((ready.sample, ready.result()) for ready in asked)
                asked = []
        asked.append(work)
    if queue:
        answer(predict, queue)
    yield from ((ready.sample, ready.result()) for ready in asked)


# --------------------------------------------------------------------------------------------------------- segmentation
def views(settings: SegmentationEvaluation) -> list[tuple[float, bool]]:
    """Return the (ratio, mirrored) copies of an image that are predicted, the plain one always among them (G7)."""
    plain = (1.0, False)
    if not settings.multi_scale:
        return [plain]
    many = [(ratio, mirrored) for ratio in settings.ratios for mirrored in (False, True)]
    return many if plain in many else [plain, *many]


class SegmentationWork:
    """Class labels (H, W) of one image: ``ss`` at single scale and, with ``multi_scale``, ``ms`` over all views.

    Logits are averaged over the windows of a view, brought to the original size, and only then turned into
    probabilities (G8); ``ms`` is the class of the highest mean probability.
    """

    def __init__(self, sample: dict, settings: SegmentationEvaluation) -> None:
        self.sample, self.settings = sample, settings
        self.labels: dict[str, Tensor] = {}
        self.probabilities: Tensor | None = None

    def requests(self) -> Iterator[Request]:
        """Yield the windows of all views."""
        for ratio, mirrored in views(self.settings):
            image = scaled_image(self.sample["image"], self.settings, ratio)
            window = SlidingWindow(image.flip(-1) if mirrored else image, self.settings.crop, self.settings.stride)
            for corner in window.corners:
                key = f"{self.sample['id']}/{ratio}/{corner[0]},{corner[1]}/{'mirrored' if mirrored else 'plain'}"
                inputs = {"image": window.window(corner), "id": self.sample["id"], "key": key}
                yield inputs, self._sink(window, corner, ratio, mirrored)

    def _sink(self, window: SlidingWindow, corner: tuple[int, int], ratio: float, mirrored: bool) -> Sink:
        def take(output: Tensor) -> None:
            window.add(corner, output)
            if not window.missing:
                self._add_view(window.mean(), ratio, mirrored)

        return take

    def _add_view(self, logits: Tensor, ratio: float, mirrored: bool) -> None:
        probabilities = resize(logits, *self.sample["image"].shape[-2:]).softmax(0)
        if (ratio, mirrored) == (1.0, False):
            self.labels["ss"] = probabilities.argmax(0).cpu()
        if self.settings.multi_scale and ratio in self.settings.ratios:
            probabilities = probabilities.flip(-1) if mirrored else probabilities
            self.probabilities = probabilities if self.probabilities is None else self.probabilities + probabilities

    def result(self) -> dict[str, Tensor]:
        """Return the labels by protocol."""
        if self.probabilities is not None:
            self.labels["ms"] = self.probabilities.argmax(0).cpu()
            self.probabilities = None
        return self.labels


def segment(
    predict: Predict, samples: Iterable[dict], settings: SegmentationEvaluation
) -> Iterator[tuple[dict, dict[str, Tensor]]]:
    """Yield each sample with its predicted class labels (see ``SegmentationWork``)."""
    return stream(predict, (SegmentationWork(sample, settings) for sample in samples), settings.batch_size)


# ----------------------------------------------------------------------------------------------------------- referring
class ReferringWork:
    """Logits (2, size, size) of one sentence; sentences on one image share its ``key``."""

    def __init__(self, sample: dict) -> None:
        self.sample = sample

    def requests(self) -> Iterator[Request]:
        """Yield the image and its sentence."""
        names = ("image", "text", "id")
        yield {**{name: self.sample[name] for name in names}, "key": self.sample["image_id"]}, self._take

    def _take(self, output: Tensor) -> None:
        self.logits = output.cpu()

    def result(self) -> Tensor:
        """Return the logits."""
        return self.logits


def refer(predict: Predict, samples: Iterable[dict], settings: ReferringEvaluation) -> Iterator[tuple[dict, Tensor]]:
    """Yield each sentence's sample with its logits (2, size, size)."""
    return stream(predict, map(ReferringWork, samples), settings.batch_size)


# --------------------------------------------------------------------------------------------------------------- depth
class DepthWork:
    """Metres (H, W) of one image: mean over shifted square windows and their mirror images (D11)."""

    def __init__(self, sample: dict, settings: DepthEvaluation) -> None:
        self.sample, self.settings = sample, settings
        height, width = sample["image"].shape[-2:]
        if height != settings.window or width < height:
            raise UserError(
                f"sample {sample['id']} is {width}x{height} pixels, but evaluation.window is {settings.window}; "
                f"set it to the height of the images, which must not be more than their width"
            )
        self.starts = depth_windows(width, settings.window, settings.windows)
        self.total, self.count = torch.zeros(height, width), torch.zeros(width)

    def requests(self) -> Iterator[Request]:
        """Yield every window, plain and mirrored."""
        side = self.settings.window
        for start in self.starts:
            window = self.sample["image"][:, :, start : start + side]
            for mirrored in (False, True) if self.settings.flip else (False,):
                key = f"{self.sample['id']}/{start}/{'mirrored' if mirrored else 'plain'}"
                image = window.flip(-1) if mirrored else window
                inputs = {"image": image, "class_id": self.sample["class_id"], "id": self.sample["id"], "key": key}
                yield inputs, self._sink(start, mirrored)

    def _sink(self, start: int, mirrored: bool) -> Sink:
        def take(output: Tensor) -> None:
            metres = output[0].cpu()
            columns = slice(start, start + self.settings.window)
            self.total[:, columns] += metres.flip(-1) if mirrored else metres
            self.count[columns] += 1

        return take

    def result(self) -> Tensor:
        """Return the metres."""
        return self.total / self.count


def estimate_depth(
    predict: Predict, samples: Iterable[dict], settings: DepthEvaluation
) -> Iterator[tuple[dict, Tensor]]:
    """Yield each sample with its predicted metres (H, W)."""
    return stream(predict, (DepthWork(sample, settings) for sample in samples), settings.batch_size)
