"""What a training step keeps for its backward pass, measured on fake tensors: shapes without contents."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from vpd.config.schema import Spec
from vpd.planning.cost.network import Parts, build, make_batch
from vpd.training.losses import loss


@dataclass(frozen=True)
class Kept:
    """Bytes that wait for the backward pass, those of the loss included."""

    per_image: int
    copies: int
    """Bytes whatever the batch: mixed precision keeps copies of the weights in its own type, attention in windows the
    biases that it gathered from its tables."""


def keep(spec: Spec, parts: Parts, classes: int, checkpointing: bool) -> Kept:
    """What the forward pass of a training step keeps in the spec's precision, with or without gradient checkpointing.

    Two batch sizes tell what grows with the batch from what does not. Batch norm takes no single image at a map of one
    pixel, hence twos.
    """
    training = spec.training.model_copy(update={"gradient_checkpointing": checkpointing})
    spec = spec.model_copy(update={"training": training})
    with torch.device("meta"):
        model = build(spec, parts, classes).train()
    # Tables that a network has made of a grid before are real, and stay what they are.
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = Shapes(model)
        two, four = (_kept(network, spec, make_batch(spec, images, classes)) for images in (2, 4))
    return Kept((four - two) // 2, 2 * two - four)


def _kept(network: Shapes, spec: Spec, batch: dict) -> int:
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=spec.training.precision == "bf16")
    with saved_bytes(network.state.values()) as saved:
        with mixed:
            prediction = network(batch)
        any_loss(spec, prediction, batch)
        return saved.total()


class Shapes:
    """A network whose weights are fake tensors, as if on a CPU: attention is one fused kernel there, as on a GPU.

    On the meta device it would be written out, and keep the probabilities of every pair of pixels.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.state = {
            name: torch.empty(t.shape, dtype=t.dtype).requires_grad_(t.requires_grad) for name, t in tensors.items()
        }

    def __call__(self, batch: dict) -> Tensor:
        """Predict."""
        return functional_call(self.model, self.state, (batch,))


class Saved:
    """Memory that autograd holds, each piece counted once however many tensors view it."""

    def __init__(self, own: Iterable[Tensor]) -> None:
        self._own = {tensor.untyped_storage()._cdata for tensor in own}
        self._pieces: dict[int, torch.UntypedStorage] = {}

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor that autograd saves, unless it is one of the model's own."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own:
            self._pieces[storage._cdata] = storage  # held, so that its identity is given to no other
        return tensor

    def total(self) -> int:
        """Bytes so far."""
        return sum(storage.nbytes() for storage in self._pieces.values())


@contextlib.contextmanager
def saved_bytes(own: Iterable[Tensor]) -> Iterator[Saved]:
    """Count what autograd saves in the block, the model's ``own`` parameters and buffers excepted."""
    saved = Saved(own)
    with torch.autograd.graph.saved_tensors_hooks(saved.add, lambda tensor: tensor):
        yield saved


def any_loss(spec: Spec, prediction: Tensor, batch: dict) -> Tensor:
    """The training loss with every pixel taken as known: shapes must not depend on contents, which fake tensors lack."""
    if spec.training.loss.kind == "cross-entropy":
        return loss(spec.training.loss.model_copy(update={"average": "all-pixels"}), prediction, batch)
    difference = prediction.float().squeeze(1).clamp(min=spec.training.loss.clamp).log() - batch["depth"].log()
    return torch.sqrt(difference.square().mean() - difference.mean().square())
