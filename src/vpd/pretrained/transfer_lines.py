"""The hub library's progress bars as plain lines, for logs."""

from __future__ import annotations

import io
import sys
import time
from typing import Any

from tqdm import tqdm

from vpd.utils.progress import SECONDS_BETWEEN_LINES, clock

MEGABYTE = 1e6


class TransferLines(tqdm):
    """Bytes written so far, at most every ten seconds; the library's other bars show nothing."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.began = self.last = time.monotonic()
        # The library counts bytes twice: off the network ("Downloading ...") and onto the disk.
        self.shown = options.get("unit") == "B" and not str(options.get("desc")).startswith("Downloading")
        super().__init__(*args, **options | {"file": io.StringIO()})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Print a line if the last one is old enough."""
        now = time.monotonic()
        if self.shown and self.n and now - self.last >= SECONDS_BETWEEN_LINES:
            self.last = now
            rate = self.n / (now - self.began)
            left = clock(max(0.0, (self.total or self.n) - self.n) / rate)
            done, total = self.n / MEGABYTE, (self.total or self.n) / MEGABYTE
            print(f"download: {done:.0f}/{total:.0f} MB, {rate / MEGABYTE:.1f} MB/s, {left} left", file=sys.stderr)
        return True
