"""Fréchet distance between two sets of features, each taken for a Gaussian (Heusel et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` of features (N,C) and (M,C), in double precision."""
    (mean, covariance), (other_mean, other_covariance) = _moments(first), _moments(second)
    # S1 S2 has the eigenvalues of the symmetric S1^(1/2) S2 S1^(1/2), for which no complex root can arise.
    root = _root(covariance)
    shared = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp(min=0).sqrt().sum()
    apart = (mean - other_mean).square().sum()
    return (apart + covariance.trace() + other_covariance.trace() - 2 * shared).item()


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (C,) and unbiased covariance (C,C)."""
    features = features.double()
    return features.mean(dim=0), torch.cov(features.T).reshape(2 * features.shape[1:])


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
