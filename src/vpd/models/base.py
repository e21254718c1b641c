"""What all networks share: features for the heads, storage of what was trained, and a cache for frozen encoders."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vpd.utils.errors import UserError

Size = tuple[int, int]  # height and width
REAL = {torch.float16, torch.bfloat16, torch.float32, torch.float64}  # types of weights that convert to each other
Batch = dict[str, Any]
"""``image`` (batch, 3, H, W) in [-1, 1]; ``text`` or ``class_id`` (batch,) where the network is told what to look for;
``key`` names images that are never augmented."""


@dataclass(frozen=True)
class Features:
    """Feature maps of a batch, fine to coarse."""

    maps: list[Tensor]  # per level (batch, channels + tokens, h, w), recorded attention behind the U-Net's channels
    strides: list[int]  # input pixels per map pixel
    attention: list[Tensor | None]  # per level the recorded cross-attention (batch, tokens, h, w), or None


class Network(nn.Module):
    """A network of one experiment: features of a batch, and a head that predicts from them."""

    frozen: ClassVar[
        tuple[str, ...]
    ] = ()  # beginnings of the names of tensors that are never trained, hence not stored
    latents: LatentCache | None = None  # of images that have a ``key``; None where nothing is computed before training
    head: nn.Module

    def forward(self, batch: Batch) -> Tensor:
        """Predict logits (batch, classes, h, w) at the head's own size, or metres (batch, 1, H, W)."""
        height, width = batch["image"].shape[-2:]
        return self.head(self.features(batch), (height, width))

    def features(self, batch: Batch) -> Features:
        """Compute the features of a batch, fine to coarse."""
        raise NotImplementedError

    def trained_state(self) -> dict[str, Tensor]:
        """Copy all tensors but those of frozen encoders, contiguous and in main memory."""
        return copied(self._trained())

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Load what ``trained_state`` gave, or nothing and raise UserError if a tensor does not fit."""
        check_fit(self._trained(), state, "the weights do not fit this model", "use weights trained with this spec")
        with torch.no_grad():
            self.load_state_dict(state, strict=False)

    def _trained(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(self.frozen)}


@contextlib.contextmanager
def own_stream() -> Iterator[None]:
    """Take one number from torch's random stream, and all that the block draws from another stream, which it begins.

    So the layers that follow start from the same weights whatever this one's size is, and the rows of an ablation, whose
    attention maps widen some layers, can be compared seed by seed.
    """
    seed = int(torch.randint(1 << 62, (), device="cpu"))  # numbers, also where networks are built without any
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def check_fit(own: dict[str, Tensor], state: dict[str, Tensor], complaint: str, cure: str) -> None:
    """Raise UserError ``complaint (faults); cure`` unless ``state`` fits ``own`` (``misfits``)."""
    if fault := misfits(own, state):
        raise UserError(f"{complaint} ({fault}); {cure}")


def misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Say how given tensors differ from a network's by name, shape, type and finiteness; empty if all fit."""
    shared = sorted(own.keys() & given.keys())
    reshaped = [name for name in shared if own[name].shape != given[name].shape]
    # Rounded, quantised and complex weights would be converted without a word.
    other = [name for name in shared if (own[name].dtype in REAL) != (given[name].dtype in REAL)]
    named = {
        "missing": sorted(own.keys() - given.keys()),
        "unexpected": sorted(given.keys() - own.keys()),
        "of another shape": reshaped,
        "of another type": other,
        "with NaN or infinite values": [name for name in shared if not _finite(given[name], own[name].dtype)],
    }
    faults = {kind: f"{len(names)} {kind}, first '{names[0]}'" for kind, names in named.items() if names}
    if reshaped:
        first = reshaped[0]
        faults["of another shape"] += f" {tuple(given[first].shape)} instead of {tuple(own[first].shape)}"
    if other:
        faults["of another type"] += f" {given[other[0]].dtype} instead of {own[other[0]].dtype}"
    return "; ".join(faults.values())


def _finite(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether all values of a tensor are finite, also as the type that they will be converted to."""
    return tensor.is_meta or tensor.dtype not in REAL or bool(tensor.to(dtype).isfinite().all())


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors into main memory, contiguous."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}


class LatentCache:
    """Tensors of frozen encoders by key, at most ``max_bytes`` in main memory.

    Each tensor is computed alone, so its bits never depend on the batch it came with or on what the cache holds. A full
    cache keeps what it has: a pass over the data in random order would evict what the next pass needs.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes, self.hits, self.misses = max_bytes, 0, 0, 0
        self._tensors: dict[Hashable, Tensor] = {}

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return the tensor of ``key``; compute it on first use and store it while there is room."""
        if key in self._tensors:
            self.hits += 1
            return self._tensors[key]
        self.misses += 1
        value = compute().detach()
        if self.bytes + value.nbytes <= self.max_bytes:
            self._tensors[key] = value.to("cpu", copy=True)
            self.bytes += value.nbytes
        return value

    def __len__(self) -> int:
        return len(self._tensors)
