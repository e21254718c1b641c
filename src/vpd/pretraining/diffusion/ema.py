"""Exponential moving average of a model's weights."""

from __future__ import annotations

import torch
from torch import nn


class EMA:
    """Average ``a <- d a + (1 - d) w`` with ``d = min(decay, (1 + s) / (10 + s))`` at step s.

    The short memory at first keeps the initial weights, which are noise, out of early milestones.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights of ``model`` after optimizer step ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, weight in model.named_parameters():
            self.weights[name].lerp_(weight, 1.0 - decay)
