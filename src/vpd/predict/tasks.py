"""The three tasks on one picture of any size, inferred as in evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy import ndarray
from PIL import Image
from torch import Tensor

from vpd.config.schema import (
    DepthEvaluation,
    DepthSpec,
    LavtModel,
    ReferringEvaluation,
    ReferringSpec,
    SegmentationEvaluation,
    SegmentationSpec,
    Spec,
    VPDModel,
)
from vpd.datasets.dataset import image_tensor
from vpd.datasets.nyuv2 import SCENES
from vpd.datasets.transforms import normalise, resize_square
from vpd.evaluation.inference import Predict, Request, Sink, refer, stream
from vpd.evaluation.run import predictor
from vpd.evaluation.windows import SlidingWindow, depth_windows, resize, scaled_image
from vpd.models.text import unseen
from vpd.predict.network import TrainedNetwork
from vpd.predict.pictures import say
from vpd.predict.predictions import DepthMap, ReferredObject, Segments
from vpd.utils.errors import UserError, pick

OPTIONS = {"text": "referring", "scene": "depth"}
"""Option -> the only task that it is for."""


def check_options(spec: Spec, text: str | None, scene: str | None) -> None:
    """Raise UserError for a missing or blank text, an unknown scene, or an option that the task does not have."""
    for name, value in (("text", text), ("scene", scene)):
        if value is not None and spec.task != OPTIONS[name]:
            raise UserError(f"{name} is for {OPTIONS[name]} only, but {spec.name} is {spec.task}; leave it out")
    if spec.task == "referring" and not (text or "").strip():
        raise UserError(f"{spec.name} looks for what a text describes; give a text, such as 'the red chair'")
    if scene is not None:
        if not _prompted_by_scene(spec):
            raise UserError("the prompt of this experiment does not depend on the scene; leave it out")
        pick(_scene_key(scene), dict.fromkeys(SCENES), "scene")


def _scene_key(scene: str) -> str:
    return scene.strip().lower().replace(" ", "_")


def _prompted_by_scene(spec: Spec) -> bool:
    return isinstance(spec.model, VPDModel) and spec.model.prompt.strategy == "scene"


def build_task(network: TrainedNetwork, text: str | None = None, scene: str | None = None) -> Task:
    """Prepare a network to predict; without ``scene``, depth uses the mean of all scene prompts."""
    spec, forward = network.spec, predictor(network.spec, network.model)
    if isinstance(spec, SegmentationSpec):
        return Segmentation(forward, spec.evaluation, network.names)
    if isinstance(spec, ReferringSpec):
        reader = getattr(network.model, "language" if isinstance(spec.model, LavtModel) else "text")
        if said := unseen(reader.tokenizer, text or "", reader.length):
            say(said)
        return Referring(forward, spec.evaluation, text or "")
    assert isinstance(spec, DepthSpec)
    if scene is not None:
        key = _scene_key(scene)
        return Depth(forward, spec.evaluation, SCENES.index(key), key.replace("_", " "))
    if _prompted_by_scene(spec):
        say(f"no scene is given, so the prompt is the mean of all {len(SCENES)} scene classes")
    return Depth(forward, spec.evaluation, -1, "scene not given")


@dataclass(frozen=True)
class Segmentation:
    """Class ids by sliding windows at a single scale, as in evaluation (G8)."""

    forward: Predict
    settings: SegmentationEvaluation
    names: list[str]

    def infer(self, image: ndarray, name: str) -> Segments:
        """Predict the class of every pixel of an RGB image (H, W, 3) uint8."""
        settings = self.settings
        window = SlidingWindow(scaled_image(image_tensor(image), settings, 1.0), settings.crop, settings.stride)
        requests = [
            ({"image": window.window(corner), "id": name, "key": f"{name}/{corner}"}, partial(window.add, corner))
            for corner in window.corners
        ]
        ((_, maps),) = stream(self.forward, [({}, requests, window.mean)], settings.batch_size)
        # Datasets' label maps have 8 bits, so there are never more classes.
        return Segments(image, largest(maps, *image.shape[:2]).cpu().numpy().astype(np.uint8), self.names)


def largest(maps: Tensor, height: int, width: int) -> Tensor:
    """Return the index of the largest of the maps (K, h, w) at each pixel after bilinear resizing: (height, width)."""
    best = resize(maps[:1], height, width)[0]
    index = torch.zeros_like(best, dtype=torch.int16)
    # One map at a time: all 150 classes of a photo of 12 megapixels would take 7 GB.
    for number in range(1, len(maps)):
        values = resize(maps[number : number + 1], height, width)[0]
        index[values > best] = number
        torch.maximum(best, values, out=best)
    return index


@dataclass(frozen=True)
class Referring:
    """The object that an expression describes, inferred at the training size and resized to the picture's (R2)."""

    forward: Predict
    settings: ReferringEvaluation
    text: str

    def infer(self, image: ndarray, name: str) -> ReferredObject:
        """Predict the mask, and the probability float16 that a pixel belongs to the object."""
        square, _ = resize_square(image, image[:1, :1, 0], self.settings.size)  # there is no mask to resize
        sample = {"image": image_tensor(normalise(square)), "text": self.text, "id": name, "image_id": name}
        ((_, small),) = refer(self.forward, [sample], self.settings)
        logits = resize(small, *image.shape[:2])
        mask, probability = logits.argmax(0).bool().numpy(), logits.softmax(0)[1].numpy().astype(np.float16)
        return ReferredObject(image, mask, probability, self.text)


@dataclass(frozen=True)
class Depth:
    """Mean of windows along the longer side and of their mirror images, as in evaluation (D11).

    A network learns the camera along with the scenes: metres are right only for cameras like that of the training set,
    and for other focal lengths are off by about the ratio of the two.
    """

    forward: Predict
    settings: DepthEvaluation
    scene: int
    """Class id of the prompt; -1 for the mean of all."""
    scene_name: str

    def infer(self, image: ndarray, name: str) -> DepthMap:
        """Predict metres; the shorter side is resized to that of a window."""
        side = self.settings.window
        window = SlidingWindow(image_tensor(normalise(_fitted(image, side))), side, side)
        starts = window_starts(max(window.height, window.width), self.settings)
        window.corners = [(start, 0) if window.height > window.width else (0, start) for start in starts]
        requests: list[Request] = []
        for corner in window.corners:
            for mirrored in (False, True) if self.settings.flip else (False,):
                pixels = window.window(corner)
                key = f"{name}/{corner[0]},{corner[1]}/{mirrored}"
                inputs = {"image": pixels.flip(-1) if mirrored else pixels, "id": name, "key": key}
                requests.append(({**inputs, "class_id": torch.tensor(self.scene)}, _sink(window, corner, mirrored)))
        ((_, maps),) = stream(self.forward, [({}, requests, window.mean)], self.settings.batch_size)
        return DepthMap(image, resize(maps, *image.shape[:2])[0].numpy(), self.scene_name)


Task = Segmentation | Referring | Depth


def _fitted(image: ndarray, side: int) -> ndarray:
    """Resize an image so that its shorter side is ``side``, smoothing where it shrinks."""
    height, width = image.shape[:2]
    factor = side / min(height, width)
    size = (max(side, round(width * factor)), max(side, round(height * factor)))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def window_starts(length: int, settings: DepthEvaluation) -> list[int]:
    """Place windows along the longer side: at least as many as in evaluation, overlapping by half."""
    side = settings.window
    if length == side:
        return [0]
    return depth_windows(length, side, max(settings.windows, 1 - (2 * (side - length) // side)))


def _sink(window: SlidingWindow, corner: tuple[int, int], mirrored: bool) -> Sink:
    return lambda output: window.add(corner, (output.flip(-1) if mirrored else output).cpu())
