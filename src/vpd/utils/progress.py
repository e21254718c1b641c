"""Progress with rate and remaining time: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0


def clock(seconds: float) -> str:
    """``75`` -> ``1:15``."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


class Progress:
    """Counts ``total`` units of work (0: unknown), optionally from ``done`` already finished; ``advance`` shows them.

    On a terminal it is a tqdm bar; elsewhere a line is printed at most every ten seconds and at the end.
    """

    def __init__(self, total: int, label: str, unit: str = "it", done: int = 0) -> None:
        self.total, self.label, self.unit, self.count = total, label, unit, done
        self.first, self.start = done, time.monotonic()
        self.last = self.start
        self.bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, desc=label, unit=unit, dynamic_ncols=True, leave=True)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Report ``count`` more finished units, with a short note such as the current loss."""
        self.count += count
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(count)
            return
        now = time.monotonic()
        if now - self.last >= SECONDS_BETWEEN_LINES or self.count == self.total:
            self.last = now
            self._line(now - self.start, note)

    def _line(self, elapsed: float, note: str) -> None:
        rate = (self.count - self.first) / max(elapsed, 1e-9)
        text = f"{self.label}: {self.count}/{self.total} {self.unit}, {rate:.2f} {self.unit}/s"
        if self.total:
            text += f", {clock((self.total - self.count) / rate if rate else 0.0)} left"
        else:
            text = f"{self.label}: {self.count} {self.unit}, {rate:.2f} {self.unit}/s"
        print(f"{text}  {note}".rstrip(), file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar."""
        if self.bar is not None:
            self.bar.close()


def track(items: Iterable[Item], total: int, label: str, unit: str = "it") -> Iterator[Item]:
    """Iterate over ``items`` while showing progress."""
    progress = Progress(total, label, unit)
    for item in items:
        yield item
        progress.advance()
    progress.close()
