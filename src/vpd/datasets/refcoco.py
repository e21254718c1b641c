"""Reads RefCOCO, RefCOCO+ and RefCOCOg for referring segmentation."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from vpd.config.schema import ReferringSpec
from vpd.datasets.dataset import Dataset, image_tensor, label_tensor
from vpd.datasets.images import check_pair, read_image
from vpd.datasets.layouts import refcoco
from vpd.datasets.transforms import normalise, resize_square
from vpd.utils.errors import UserError


class RefCOCO(Dataset):
    """Training: one sample per object, with a random one of its sentences (R12). Otherwise every sentence is a sample."""

    splits = {split: split for split in ("train", "val", "test", "testA", "testB")}

    def __init__(self, spec: ReferringSpec, root: Path, split: str, seed: int = 0) -> None:
        super().__init__(split, seed)
        if spec.variant is None:
            raise UserError(f"experiment '{spec.name}' names no variant; choose one of {', '.join(refcoco.VARIANTS)}")
        self.size = spec.data.size if self.training else spec.evaluation.size
        self.references = refcoco.references(root, spec.variant, self.split)
        numbers = range(len(self.references))
        self.sentences = [(n, s) for n in numbers for s in range(len(self.references[n].sentences))]

    def __len__(self) -> int:
        return len(self.references) if self.training else len(self.sentences)

    def sample(self, index: int, epoch: int = 0) -> dict:
        """image, label (1 = the object), text, image_id, key, id."""
        if self.training:
            reference = self.references[index]
            chosen = int(self.generator(index, epoch).integers(len(reference.sentences)))
        else:
            number, chosen = self.sentences[index]
            reference = self.references[number]
        image, mask = read_image(reference.image), refcoco.object_mask(reference)
        check_pair(image, reference.image, mask, Path(f"mask of reference {reference.ref_id}"))
        image, mask = resize_square(image, mask, self.size)
        sent_id, text = reference.sentences[chosen]
        return {
            "image": image_tensor(normalise(image)),
            "label": label_tensor(mask),
            "text": text,
            "image_id": str(reference.image_id),
            "key": str(reference.image_id),  # never augmented, so the frozen encoder need see each image only once
            "id": f"{reference.ref_id}-{sent_id}",
        }

    def native_label(self, index: int) -> Tensor:
        """Label of sample ``index`` at the image's own size, (H, W) int64."""
        number = index if self.training else self.sentences[index][0]
        return label_tensor(refcoco.object_mask(self.references[number]))
