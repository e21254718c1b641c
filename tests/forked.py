"""Processes: copies of the test's own, which need not import again what takes seconds; and what has become of others."""

import threading
import time
from collections.abc import Callable
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


def alive(pid: int) -> bool:
    """Whether a process exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
