"""Processes: copies of the test's own, which need not import again what takes seconds; and what has become of others."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path


def status_of(function: Callable[..., object], *arguments: object) -> int:
    """Call a function in a copy of this process; the copy's exit status, negative after a signal."""
    process = get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until it holds, at most a minute; tests may have replaced time.sleep."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


@contextlib.contextmanager
def impatient(seconds: int = 20) -> Iterator[None]:
    """Fail if the block hangs."""

    def late(number: int, frame: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def alive(pid: int) -> bool:
    """Whether a process exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
