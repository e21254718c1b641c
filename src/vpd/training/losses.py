"""Training losses."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vpd.config.schema import LossSpec
from vpd.models.resize import resize

IGNORED = 255


def cross_entropy(spec: LossSpec, logits: Tensor, batch: dict) -> Tensor:
    """Cross-entropy of (batch, classes, h, w) logits at the size of ``batch["label"]`` (batch, H, W); 255 is ignored.

    ``all-pixels`` divides by the number of pixels, ignored ones included, as the released training does (G12);
    ``valid-pixels`` by the summed class weights of the others.
    """
    label = batch["label"]
    if logits.shape[-2:] != label.shape[-2:]:
        logits = resize(logits, label.shape[-2:])
    weights = torch.tensor(spec.class_weights or [1.0] * logits.shape[1], device=logits.device)
    loss = F.cross_entropy(logits.float(), label, weight=weights, ignore_index=IGNORED, reduction="sum")
    if spec.average == "all-pixels":
        return loss / label.numel()
    valid = label[label != IGNORED]
    return loss / weights[valid].sum() if len(valid) else loss


def silog(spec: LossSpec, depth: Tensor, batch: dict) -> Tensor:
    """Scale-invariant log loss sqrt(mean d^2 - lambda mean^2 d) of metres (batch, 1, H, W), at known depths (D16)."""
    truth = batch["depth"]
    known = truth > 0
    if not known.any():
        return depth.sum() * 0
    # The smallest logarithm is bounded, unlike in the released code, whose first steps can be NaN (D18).
    prediction = depth.float().squeeze(1)[known].clamp(min=spec.clamp)
    d = prediction.log() - truth[known].log()
    return torch.sqrt(d.square().mean() - spec.variance_focus * d.mean().square())


LOSSES = {"cross-entropy": cross_entropy, "silog": silog}


def loss(spec: LossSpec, prediction: Tensor, batch: dict) -> Tensor:
    """Scalar training loss of a model's output for a batch."""
    return LOSSES[spec.kind](spec, prediction, batch)
