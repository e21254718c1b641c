"""The library: trained networks for pictures of one's own, and the features of any Stable Diffusion."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import repeat
from pathlib import Path
from typing import Any, overload

from numpy import ndarray
from PIL import Image
from torch import Tensor, nn

from vpd.config.params import load_params
from vpd.config.schema import Spec, load_spec
from vpd.datasets.pictures import Picture, Pictures, as_array, each, is_one
from vpd.models.extractor import DiffusionFeatures, FeatureExtractor
from vpd.predict.network import TrainedNetwork, load_network
from vpd.predict.predictions import Prediction
from vpd.predict.run import infer
from vpd.predict.tasks import build_task, check_options
from vpd.stages.predict import class_names_of, find_parts, pipeline_folder
from vpd.utils.errors import UserError

PARAMS = "params.yaml"
MODELS = "models:/"


class Predictor:
    """A trained network that predicts for any pictures."""

    def __init__(self, network: TrainedNetwork) -> None:
        self._network = network

    @property
    def spec(self) -> Spec:
        """All settings of its experiment."""
        return self._network.spec

    @property
    def names(self) -> list[str]:
        """Names of the classes (segmentation), by number; empty for other tasks."""
        return self._network.names

    @property
    def model(self) -> nn.Module:
        """The network itself."""
        return self._network.model

    @overload
    def predict(
        self,
        images: str | os.PathLike[str] | Image.Image,
        *,
        text: str | Sequence[str] | None = None,
        scene: str | None = None,
    ) -> Prediction: ...
    @overload
    def predict(
        self,
        images: list[Picture] | tuple[Picture, ...],
        *,
        text: str | Sequence[str] | None = None,
        scene: str | None = None,
    ) -> list[Prediction]: ...
    @overload
    def predict(
        self, images: ndarray | Tensor, *, text: str | Sequence[str] | None = None, scene: str | None = None
    ) -> Any: ...

    def predict(
        self, images: Pictures, *, text: str | Sequence[str] | None = None, scene: str | None = None
    ) -> Prediction | list[Prediction]:
        """Predict for pictures of any size, one after another, as in evaluation.

        Args:
            images: one or several paths, Pillow images, arrays (H, W, 3) or tensors (3, H, W).
            text: what to look for (referring): for all pictures, or one for each.
            scene: kind of room, such as ``kitchen`` (depth).

        Returns:
            For one picture ``Segments`` (``labels`` and ``names``), a ``ReferredObject`` (``mask`` and ``probability``) or a
            ``DepthMap`` (``depth`` in metres), whose ``panel()`` draws it; for several a list of them.

        Raises:
            UserError: a picture cannot be read, or an option is missing, unknown or not for this task.
        """
        found = list(self._predict(images, text, scene))
        return found[0] if is_one(images) else found

    def _predict(self, images: Pictures, text: str | Sequence[str] | None, scene: str | None) -> Iterator[Prediction]:
        pictures = list(each(images))
        if text is not None and not isinstance(text, str) and len(text) != len(pictures):
            raise UserError(f"there are {len(text)} texts for {len(pictures)} images; give one, or one for each")
        texts = repeat(text) if text is None or isinstance(text, str) else text
        task, told = None, None
        for (name, picture), one in zip(pictures, texts, strict=False):
            if task is None or one != told:
                check_options(self.spec, one, scene)
                task, told = build_task(self._network, one, scene), one
            yield infer(self.spec, task, as_array(picture, name), name)


def load(
    name: str,
    *,
    project: str | Path | None = None,
    scale: str | None = None,
    uri: str = "",
    device: str | None = None,
    precision: str = "fp32",
    spec: str | Path | None = None,
    weights: str | Path | None = None,
    checkpoint: str | Path | None = None,
    data: str | Path | None = None,
) -> Predictor:
    """Load a trained network.

    Args:
        name: experiment of a project, such as ``depth-full``, trained there or shipped with it; or a registered model, such as
            ``models:/vpd-depth/1``.
        project: folder of the project. By default the present one if it has a params.yaml, and else what was installed.
        scale: scale of the project, by default that of its params.yaml.
        uri: MLflow's tracking address, for registered models.
        device: such as ``cpu`` or ``cuda``; by default the GPU if there is one.
        precision: ``fp32`` as in evaluation, or ``bf16``: half the memory once it is loaded, predictions that differ a little.
        spec: resolved spec that replaces the usual one.
        weights: weights that replace the usual ones.
        checkpoint: checkpoint that replaces the usual one.
        data: dataset folder whose classes replace the usual ones (segmentation).

    Raises:
        UserError: the network is unknown, was not trained, or one of its files is missing or damaged.
    """
    root = _root(project)
    params = None if name.startswith(MODELS) else load_params(root / PARAMS, scale)
    given = {"spec": spec, "weights": weights, "checkpoint": checkpoint, "data": data}
    parts = find_parts(name, params, {part: Path(path) for part, path in given.items() if path}, uri, root)
    settings = load_spec(parts["spec"])
    names = class_names_of(settings, parts)
    return Predictor(load_network(settings, parts["weights"], parts["checkpoint"], names, device, precision))


def pipeline(name: str, *, project: str | Path | None = None, scale: str | None = None) -> Path:
    """Return the folder of a small Stable Diffusion, for ``features`` or for diffusers' ``from_pretrained``.

    Args:
        name: checkpoint of a project, such as ``sd-1-5``, made there or shipped with it.
        project: folder of the project. By default the present one if it has a params.yaml, and else what was installed.
        scale: scale of the project, by default that of its params.yaml.

    Raises:
        UserError: the checkpoint is unknown, missing or damaged.
    """
    root = _root(project)
    return pipeline_folder(name, load_params(root / PARAMS, scale), root)


def _root(project: str | Path | None) -> Path:
    return Path(project) if project else Path() if Path(PARAMS).is_file() else installed()


def installed() -> Path:
    """Return the folder of the settings and weights that came with the installed package."""
    return Path(str(resources.files("vpd"))) / "shipped"


def features(
    pipeline: Any,
    images: Pictures,
    texts: str | Sequence[str] | None = None,
    *,
    classes: Sequence[str] | None = None,
    **options: Any,
) -> DiffusionFeatures:
    """Compute VPD's features of images: multi-scale maps, and where each word looks.

    For more than one call make a ``FeatureExtractor``, which takes the same options.

    Args:
        pipeline: a pipeline of Stable Diffusion 1 to 3, SDXL or PixArt, the folder of one, or the name of a repository for
            diffusers to download.
        images: one or several of one size: paths, Pillow images, arrays (H, W, 3) or tensors (3, H, W).
        texts: a sentence for all images, or one for each.
        classes: names instead of sentences, each with a token of its own.
        options: of ``FeatureExtractor``.
    """
    return FeatureExtractor(pipeline, **options)(images, texts, classes=classes)
