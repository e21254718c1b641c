"""Checkpoints: pre-training of a small Stable Diffusion, and pipeline folders that are checked and listed."""

from __future__ import annotations

from vpd.checkpoints.assemble import assemble, verify_checkpoint

__all__ = ["assemble", "verify_checkpoint"]
