"""Batch norms that see the samples of all processes; torch's own do so on GPUs only."""

from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vpd.models.base import Network

SYNCHRONISED = ("segmentation", "referring")  # those of the original's depth decoder are each process's own


def synchronise(model: Network, device: torch.device) -> Network:
    """``model`` with batch norms over all processes, under the same names; part of the modules are new ones."""
    if device.type == "cuda":
        return cast(Network, nn.SyncBatchNorm.convert_sync_batchnorm(model))
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, _shared(child))
    return model


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm of (batch, channels, h, w) over the samples of all processes, which all have some."""

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise with the moments of all processes' maps in training, with the running ones otherwise."""
        if not self.training:
            return super().forward(maps)
        values, size = maps.transpose(0, 1).flatten(1), maps.new_tensor(maps.numel() // self.num_features)
        # Two sums one after the other: a difference of squares would lose what two processes are to agree on.
        count = _Sum.apply(size)
        mean = _Sum.apply(values.sum(1)) / count
        centred = maps - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight / torch.sqrt(variance + self.eps)
        return centred * scale[:, None, None] + self.bias[:, None, None]


class _Sum(torch.autograd.Function):
    """Sum over the processes; so is the gradient, since every process's loss sees it."""

    @staticmethod
    def forward(context: object, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient.contiguous())


def _shared(norm: nn.BatchNorm2d) -> SharedBatchNorm2d:
    shared = SharedBatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    shared.load_state_dict(norm.state_dict())
    for name, parameter in norm.named_parameters():
        getattr(shared, name).requires_grad_(parameter.requires_grad)
    return shared.to(norm.weight.device).train(norm.training)
