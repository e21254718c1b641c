"""Losses against torch's own and hand values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vpd.config.schema import LossSpec
from vpd.training.losses import loss


def test_cross_entropy_averages_over_all_or_valid_pixels():
    """G12: half of the pixels ignored halves the loss of the released training."""
    logits, label = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    label[:, :4] = 255
    valid = F.cross_entropy(logits, label, ignore_index=255)
    for average, expected in (("valid-pixels", valid), ("all-pixels", valid / 2)):
        spec = LossSpec(kind="cross-entropy", average=average)
        torch.testing.assert_close(loss(spec, logits, {"label": label}), expected)


def test_cross_entropy_weighs_classes_as_torch_does():
    logits, label = torch.randn(2, 2, 8, 8), torch.randint(0, 2, (2, 8, 8))
    spec = LossSpec(kind="cross-entropy", class_weights=(0.9, 1.1))
    expected = F.cross_entropy(logits, label, weight=torch.tensor([0.9, 1.1]))
    torch.testing.assert_close(loss(spec, logits, {"label": label}), expected)


def test_cross_entropy_enlarges_logits_to_the_label():
    logits, label = torch.randn(1, 3, 4, 6), torch.randint(0, 3, (1, 16, 24))
    larger = F.interpolate(logits, size=(16, 24), mode="bilinear", align_corners=False)
    spec = LossSpec(kind="cross-entropy")
    torch.testing.assert_close(loss(spec, logits, {"label": label}), F.cross_entropy(larger, label))


def test_silog_by_hand():
    """d = (ln 2, 0) over the two known pixels: sqrt(ln2^2 / 2 - 0.5 (ln2 / 2)^2)."""
    prediction, truth = torch.tensor([2.0, 3.0, 5.0]), torch.tensor([1.0, 3.0, 0.0])
    value = loss(LossSpec(kind="silog"), prediction.view(1, 1, 1, 3), {"depth": truth.view(1, 1, 3)})
    log2 = torch.tensor(2.0).log()
    torch.testing.assert_close(value, (log2**2 / 2 - 0.5 * (log2 / 2) ** 2).sqrt())


@pytest.mark.parametrize("average", ["valid-pixels", "all-pixels"])
def test_losses_are_finite_where_nothing_is_known_or_predicted(average):
    """D18: a prediction of zero metres; and batches without any valid pixel."""
    zero = torch.zeros(1, 1, 2, 2, requires_grad=True)
    value = loss(LossSpec(kind="silog"), zero, {"depth": torch.tensor([[[1.0, 2.0], [3.0, 0.0]]])})
    nothing = loss(LossSpec(kind="silog"), zero, {"depth": torch.zeros(1, 2, 2)})
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    ignored = loss(LossSpec(kind="cross-entropy", average=average), logits, {"label": torch.full((1, 2, 2), 255)})
    (value + nothing + ignored).backward()
    assert nothing.item() == ignored.item() == 0.0
    assert value.isfinite()
    assert zero.grad.isfinite().all()
    assert not logits.grad.any()
