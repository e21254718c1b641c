"""Bilinear resizing: on a GPU its gradient is a matrix product, which must be that of PyTorch's own function."""

import pytest
import torch
import torch.nn.functional as F

from vpd.models.resize import Bilinear, resize

SIZES = [((4, 5), (8, 10)), ((7, 3), (13, 20)), ((9, 9), (4, 5)), ((1, 2), (3, 3)), ((6, 1), (6, 4)), ((5, 5), (1, 1))]


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize(("given", "made"), SIZES)
def test_values_and_gradient_are_those_of_interpolate(given, made, corners):
    x = torch.randn(2, 3, *given, dtype=torch.float64, requires_grad=True)
    found, expected = (
        Bilinear.apply(x, made, corners),
        F.interpolate(x, size=made, mode="bilinear", align_corners=corners),
    )
    assert torch.equal(found, expected)
    weights = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad(result, x, weights)[0] for result in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_gradient_of_half_precision_is_rounded_once():
    x = torch.randn(2, 3, 7, 5, dtype=torch.bfloat16, requires_grad=True)
    weights = torch.randn(2, 3, 17, 11).bfloat16()
    (found,) = torch.autograd.grad(Bilinear.apply(x, (17, 11), False), x, weights)
    exact = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(F.interpolate(exact, size=(17, 11), mode="bilinear"), exact, weights.double())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("corners", [False, True])
def test_the_cores_keep_interpolate_to_the_bit(corners):
    x = torch.randn(2, 3, 7, 5, requires_grad=True)
    weights = torch.randn(2, 3, 13, 9)
    torch.use_deterministic_algorithms(True)
    try:
        found = resize(x, (13, 9), corners)
        expected = F.interpolate(x, size=(13, 9), mode="bilinear", align_corners=corners)
        ours, theirs = (torch.autograd.grad(result, x, weights)[0] for result in (found, expected))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found, expected)
    assert torch.equal(ours, theirs)
