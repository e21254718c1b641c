"""The drawn world: integer seed to room, to image, classes, depth, instances, captions and referring expressions."""

VERSION = 1
"""Raised whenever the same seed would give other bytes, so that finished datasets are drawn again."""
