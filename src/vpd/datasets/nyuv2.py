"""Reads NYU Depth v2 for depth estimation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vpd.config.schema import DepthSpec, VPDModel
from vpd.datasets.dataset import Dataset, image_tensor
from vpd.datasets.images import check_pair, read_depth, read_image
from vpd.datasets.layouts import nyuv2
from vpd.datasets.transforms import augment_depth, normalise
from vpd.utils.errors import UserError


class NYUv2(Dataset):
    """Training: augmented crops. Validation: whole images. Depth in metres, 0 where invalid or out of range."""

    splits = {"train": "train", "val": "test"}

    def __init__(self, spec: DepthSpec, root: Path, split: str, seed: int = 0) -> None:
        super().__init__(split, seed)
        self.settings = spec.data
        self.classes = list(nyuv2.SCENES)
        self.frames = nyuv2.frames(root, self.split)
        source = spec.model.prompt.class_source if isinstance(spec.model, VPDModel) else "first-match"
        self.class_ids = [nyuv2.scene_class(frame.scene, source) for frame in self.frames]

    def __len__(self) -> int:
        return len(self.frames)

    def sample(self, index: int, epoch: int = 0) -> dict:
        """image, depth, class_id, id."""
        frame = self.frames[index]
        image, depth = read_image(frame.image), read_depth(frame.depth)
        check_pair(image, frame.image, depth, frame.depth)
        if self.training:
            if min(image.shape[:2]) < self.settings.crop:
                size, crop = f"{image.shape[1]}x{image.shape[0]}", self.settings.crop
                raise UserError(f"{frame.image} is {size}, too small for data.crop {crop}; lower data.crop")
            image, depth = augment_depth(image, depth, self.settings, self.generator(index, epoch))
        else:
            image = normalise(image)
        valid = (depth >= self.settings.min_depth) & (depth <= self.settings.max_depth)
        return {
            "image": image_tensor(image),
            "depth": torch.from_numpy(np.where(valid, depth, np.float32(0.0))),
            "class_id": torch.tensor(self.class_ids[index]),
            "id": f"{frame.scene}/{frame.image.stem}",
        }
