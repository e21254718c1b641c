"""Standard error is for a stage's own progress: the libraries' bars for loading and saving are turned off."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

LIBRARIES = ("diffusers", "transformers")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Loading and saving models shows no progress bars within the block, by whichever libraries are imported already."""
    libraries = [sys.modules[name].utils.logging for name in LIBRARIES if name in sys.modules]
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
