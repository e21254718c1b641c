"""Inference protocols of the three tasks: a stream of samples in, one prediction per sample out, in order.

``predict`` is the network: it maps a batch (``image``, ``id``, ``key`` and what else the task needs) to a tensor. All
inputs of a protocol have one size, so windows, mirrored copies, scales and samples share batches of ``batch_size``.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vpd.config.schema import DepthEvaluation, ReferringEvaluation, SegmentationEvaluation
from vpd.evaluation.windows import SlidingWindow, depth_windows, resize, scaled_image
from vpd.utils.errors import UserError

Result = TypeVar("Result")
Predict = Callable[[dict], Tensor]
Sink = Callable[[Tensor], None]
Request = tuple[dict, Sink]  # one network input and what takes its output
Work = tuple[
    dict, Iterable[Request], Callable[[], Result]
]  # a sample, its inputs, and its prediction once all are answered


def answer(predict: Predict, requests: list[Request]) -> None:
    """Run all ``requests`` as one batch."""
    inputs = [values for values, _ in requests]
    batch: dict[str, Any] = {name: [values[name] for values in inputs] for name in inputs[0]}
    for name, values in batch.items():
        if isinstance(values[0], Tensor):
            batch[name] = torch.stack(values)
    for (_, sink), output in zip(requests, predict(batch), strict=True):
        sink(output)


def stream(predict: Predict, works: Iterable[Work[Result]], batch_size: int) -> Iterator[tuple[dict, Result]]:
    """Yield (sample, result) of each work in order, with full batches across works."""
    queue: list[Request] = []
    asked: list[tuple[dict, Callable[[], Result]]] = []
    for sample, requests, result in works:
        for request in requests:
            queue.append(request)
            if len(queue) == batch_size:
                answer(predict, queue)
                queue = []
                yield from ((ready, result_of()) for ready, result_of in asked)
                asked = []
        asked.append((sample, result))
    if queue:
        answer(predict, queue)
    yield from ((ready, result_of()) for ready, result_of in asked)


def to_model(batch: dict, model: nn.Module) -> dict:
    """Return the batch with its tensors on the device of ``model``, real numbers in its precision."""
    weight = next(model.parameters())

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(weight) if value.is_floating_point() else value.to(weight.device)

    return {name: moved(value) for name, value in batch.items()}


def views(settings: SegmentationEvaluation) -> list[tuple[float, bool]]:
    """Return the (ratio, mirrored) copies of an image that are predicted, the plain one always among them (G7)."""
    plain = (1.0, False)
    if not settings.multi_scale:
        return [plain]
    many = [(ratio, mirrored) for ratio in settings.ratios for mirrored in (False, True)]
    return many if plain in many else [plain, *many]


def segment(
    predict: Predict, samples: Iterable[dict], settings: SegmentationEvaluation
) -> Iterator[tuple[dict, dict[str, Tensor]]]:
    """Yield each sample with its class labels (H, W): ``ss`` at single scale and, with ``multi_scale``, ``ms``.

    Logits are averaged over the windows of a view, brought to the original size, and only then turned into
    probabilities (G8); ``ms`` is the class of the highest mean probability over all views.
    """
    return stream(predict, (_segmentation(sample, settings) for sample in samples), settings.batch_size)


def _segmentation(sample: dict, settings: SegmentationEvaluation) -> Work[dict[str, Tensor]]:
    labels: dict[str, Tensor] = {}
    total: Tensor | None = None

    def requests() -> Iterator[Request]:
        for ratio, mirrored in views(settings):
            image = scaled_image(sample["image"], settings, ratio)
            window = SlidingWindow(image.flip(-1) if mirrored else image, settings.crop, settings.stride)
            for corner in window.corners:
                key = f"{sample['id']}/{ratio}/{corner[0]},{corner[1]}/{'mirrored' if mirrored else 'plain'}"
                inputs = {"image": window.window(corner), "id": sample["id"], "key": key}
                yield inputs, partial(take, window, corner, ratio, mirrored)

    def take(window: SlidingWindow, corner: tuple[int, int], ratio: float, mirrored: bool, output: Tensor) -> None:
        nonlocal total
        window.add(corner, output)
        if window.missing:
            return
        probabilities = resize(window.mean(), *sample["image"].shape[-2:]).softmax(0)
        if (ratio, mirrored) == (1.0, False):
            labels["ss"] = probabilities.argmax(0).cpu()
        if settings.multi_scale and ratio in settings.ratios:
            probabilities = probabilities.flip(-1) if mirrored else probabilities
            total = probabilities if total is None else total + probabilities

    def result() -> dict[str, Tensor]:
        return labels if total is None else {**labels, "ms": total.argmax(0).cpu()}

    return sample, requests(), result


def refer(predict: Predict, samples: Iterable[dict], settings: ReferringEvaluation) -> Iterator[tuple[dict, Tensor]]:
    """Yield each sentence's sample with its logits (2, size, size); sentences on one image share its ``key``."""
    return stream(predict, map(_referring, samples), settings.batch_size)


def _referring(sample: dict) -> Work[Tensor]:
    inputs = {name: sample[name] for name in ("image", "text", "id")} | {"key": sample["image_id"]}
    logits: list[Tensor] = []
    return sample, [(inputs, logits.append)], lambda: logits[0].cpu()


def estimate_depth(
    predict: Predict, samples: Iterable[dict], settings: DepthEvaluation
) -> Iterator[tuple[dict, Tensor]]:
    """Yield each sample with its metres (H, W), the mean over shifted square windows and their mirror images (D11)."""
    return stream(predict, (_depth(sample, settings) for sample in samples), settings.batch_size)


def _depth(sample: dict, settings: DepthEvaluation) -> Work[Tensor]:
    (height, width), side = sample["image"].shape[-2:], settings.window
    if height != side or width < height:
        cure = "set it to the height of the images, which must not be more than their width"
        raise UserError(f"sample {sample['id']} is {width}x{height} pixels, but evaluation.window is {side}; {cure}")
    total, count = torch.zeros(height, width), torch.zeros(width)

    def requests() -> Iterator[Request]:
        for start in depth_windows(width, side, settings.windows):
            window = sample["image"][:, :, start : start + side]
            for mirrored in (False, True) if settings.flip else (False,):
                key = f"{sample['id']}/{start}/{'mirrored' if mirrored else 'plain'}"
                image = window.flip(-1) if mirrored else window
                inputs = {"image": image, "class_id": sample["class_id"], "id": sample["id"], "key": key}
                yield inputs, partial(take, slice(start, start + side), mirrored)

    def take(columns: slice, mirrored: bool, output: Tensor) -> None:
        metres = output[0].cpu()
        total[:, columns] += metres.flip(-1) if mirrored else metres
        count[columns] += 1

    return sample, requests(), lambda: total / count
