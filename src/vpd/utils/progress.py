"""Progress with rate and remaining time: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Units of work done so far, as a context manager; ``advance`` shows them.

    A ``total`` of 0 is unknown; units that an earlier attempt has ``done`` do not count in the rate.
    """

    def __init__(self, total: int, label: str, unit: str = "it", done: int = 0, enabled: bool = True) -> None:
        self.total, self.label, self.unit, self.count = total, label, unit, done
        self.first, self.start = done, time.monotonic()
        self.last, self.enabled = self.start, enabled
        self.bar: tqdm | None = None
        if enabled and sys.stderr.isatty():
            self.bar = tqdm(total=total or None, initial=done, desc=label, unit=unit, dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count ``count`` more units, with a short note such as the current loss."""
        self.count += count
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(count)
        elif self.enabled:
            now = time.monotonic()
            if now - self.last >= SECONDS_BETWEEN_LINES or self.count == self.total:
                self.last = now
                self._print_line(now - self.start, note)

    def _print_line(self, elapsed: float, note: str) -> None:
        rate = (self.count - self.first) / max(elapsed, 1e-9)
        of_total = f"/{self.total}" if self.total else ""
        text = f"{self.label}: {self.count}{of_total} {self.unit}, {rate:.2f} {self.unit}/s"
        if self.total:
            text += f", {clock((self.total - self.count) / rate if rate else 0.0)} left"
        print(f"{text}  {note}".rstrip(), file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar."""
        if self.bar is not None:
            self.bar.close()


def clock(seconds: float) -> str:
    """``75`` -> ``1:15``."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


def track(items: Iterable[Item], total: int, label: str, unit: str = "it") -> Iterator[Item]:
    """Iterate over ``items`` while showing progress."""
    with Progress(total, label, unit) as progress:
        for item in items:
            yield item
            progress.advance()
