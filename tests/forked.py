"""A copy of the test's own process, for what ends its process: it has imported already what a new one takes seconds for."""

from collections.abc import Callable
from multiprocessing import get_context


def status_of(function: Callable[..., object], *arguments: object) -> int:
    """Call a function in a copy of this process; the copy's exit status, negative after a signal."""
    process = get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode
