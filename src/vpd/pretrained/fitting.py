"""Comparison of given tensors with those that a network has."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Say which tensors are missing, unexpected or of another shape: counts and first names; empty if all fit."""
    bent = sorted(name for name in own.keys() & given.keys() if own[name].shape != given[name].shape)
    named = {"missing": sorted(own.keys() - given.keys()), "unexpected": sorted(given.keys() - own.keys())}
    faults = [f"{len(names)} {fault}, first '{names[0]}'" for fault, names in named.items() if names]
    if bent:
        first = bent[0]
        shapes = f"{tuple(given[first].shape)} instead of {tuple(own[first].shape)}"
        faults.append(f"{len(bent)} of another shape, first '{first}' {shapes}")
    return "; ".join(faults)
