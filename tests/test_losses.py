"""Losses against torch's own and hand values."""

import pytest
import torch
import torch.nn.functional as F

from vpd.config.schema import LossSpec
from vpd.training.losses import loss


def test_cross_entropy_enlarges_logits_to_the_label():
    logits, label = torch.randn(1, 3, 4, 6), torch.randint(0, 3, (1, 16, 24))
    larger = F.interpolate(logits, size=(16, 24), mode="bilinear", align_corners=False)
    spec = LossSpec(kind="cross-entropy")
    torch.testing.assert_close(loss(spec, logits, {"label": label}), F.cross_entropy(larger, label))


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
