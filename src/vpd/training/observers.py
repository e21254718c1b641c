"""Observers of a running training: whatever they do, the training goes on as if they were not there."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterable

Observer = Callable[[int, dict[str, float]], None]
WAITING = 1000
"""Logged steps that an observer may lag behind before it is dropped."""
GRACE = 5.0
"""Seconds that observers get to catch up at the end."""


class Observers:
    """Calls each observer with every logged step, on a thread of its own so that a blocked one delays nothing.

    An observer that raises or falls too far behind is dropped with one line. Use as a context manager.
    """

    def __init__(self, observers: Iterable[Observer]) -> None:
        self.mailboxes = [_Mailbox(observer) for observer in observers]

    def __enter__(self) -> Observers:
        return self

    def __exit__(self, *error: object) -> None:
        for mailbox in self.mailboxes:
            mailbox.close()

    def notify(self, step: int, values: dict[str, float]) -> None:
        """Hand over the values of a logged step and return at once."""
        for mailbox in self.mailboxes:
            mailbox.put(step, values)


class _Mailbox:
    """One observer, its queue and its thread."""

    def __init__(self, observer: Observer) -> None:
        self.observer, self.queue, self.dropped = observer, queue.Queue(WAITING), False
        self.thread: threading.Thread | None = None

    def put(self, step: int, values: dict[str, float]) -> None:
        if self.dropped:
            return
        if self.thread is None:  # only now: the loader's workers must be forked before threads exist
            self.thread = threading.Thread(target=self._deliver, daemon=True)
            self.thread.start()
        try:
            self.queue.put_nowait((step, dict(values)))
        except queue.Full:
            self._drop(f"is {WAITING} logged steps behind")

    def close(self) -> None:
        if self.thread is None or self.dropped:
            return
        try:
            self.queue.put_nowait(None)
        except queue.Full:
            self._drop(f"is {WAITING} logged steps behind")
        self.thread.join(GRACE)
        if self.thread.is_alive():
            self._drop(f"was still busy {GRACE:g} s after the end")

    def _deliver(self) -> None:
        while (message := self.queue.get()) is not None:
            try:
                self.observer(*message)
            except Exception as error:
                self._drop(f"failed ({type(error).__name__}: {error})")
                return

    def _drop(self, reason: str) -> None:
        if not self.dropped:
            self.dropped = True
            name = getattr(self.observer, "__qualname__", type(self.observer).__name__)
            print(
                f"observer {name} {' '.join(reason.split())}; training goes on without it", file=sys.stderr, flush=True
            )
