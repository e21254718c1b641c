"""Reads ADE20K for segmentation."""

from __future__ import annotations

from pathlib import Path

from vpd.config.schema import SegmentationSpec
from vpd.datasets.dataset import Dataset, image_tensor, label_tensor
from vpd.datasets.images import check_pair, read_image, read_labels
from vpd.datasets.layouts import ade20k
from vpd.datasets.transforms import augment_segmentation, reduce_zero_label


class ADE20K(Dataset):
    """Training: augmented crops in [-1, 1]. Validation: whole uint8 images. Labels start at 0; 255 is ignored."""

    splits = {"train": "training", "val": "validation"}

    def __init__(self, spec: SegmentationSpec, root: Path, split: str, seed: int = 0) -> None:
        super().__init__(split, seed)
        self.settings = spec.data
        self.synonyms = ade20k.class_names(root)
        self.classes = [names[0] for names in self.synonyms]
        self.pairs = ade20k.pairs(root, self.split)

    def __len__(self) -> int:
        return len(self.pairs)

    def sample(self, index: int, epoch: int = 0) -> dict:
        """image, label, id."""
        image_path, label_path = self.pairs[index]
        image, labels = read_image(image_path), read_labels(label_path, len(self.classes))
        check_pair(image, image_path, labels, label_path)
        labels = reduce_zero_label(labels)
        if self.training:
            image, labels = augment_segmentation(image, labels, self.settings, self.generator(index, epoch))
        return {"image": image_tensor(image), "label": label_tensor(labels), "id": image_path.stem}
