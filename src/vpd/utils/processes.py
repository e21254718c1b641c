"""Work side by side in processes of their own, which end with the process that started them."""

import contextlib
import ctypes
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

PR_SET_PDEATHSIG = 1
M_MMAP_THRESHOLD = -3


def side_by_side(function: Callable[..., Any], jobs: Sequence[tuple], count: int) -> list[Any]:
    """Call ``function(*job)`` for every job, ``count`` at a time in processes of their own; results in order."""
    if count == 1:
        return [function(*job) for job in jobs]
    with beside(function, jobs, count) as futures:
        return [future.result() for future in futures]


@contextlib.contextmanager
def beside(function: Callable[..., Any], jobs: Sequence[tuple], count: int | None = None) -> Iterator[list[Future]]:
    """Call ``function(*job)`` for every job in other processes while the block runs, and wait for them at its end.

    The first error, of the block or of a job, is raised and cancels what has not begun. Without jobs nothing starts.
    """
    if not jobs:
        yield []
        return
    spawn = get_context("spawn")
    with ProcessPoolExecutor(count or len(jobs), mp_context=spawn, initializer=end_with_parent) as pool:
        futures = [pool.submit(function, *job) for job in jobs]
        try:
            yield futures
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Ask the kernel for a signal when the parent dies, so that no orphan goes on writing."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def return_freed_memory() -> None:
    """Let the C library give what freed tensors of 128 KiB and more took back to the system at once; glibc keeps it."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, 2**17)
