"""Errors that a user can cure, each said in one sentence."""

import difflib
import errno
import os
import re
import traceback
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing import resource_sharer
from typing import TypeVar

MEMORY = re.compile(
    r"out of memory|(can't|cannot|unable to) (allocate|mmap)|bad_alloc|failed to map segment", re.IGNORECASE
)
DISK = re.compile(
    "(No space left on device|Disk quota exceeded|File too large)|PytorchStreamWriter|unexpected pos|iostream error"
)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DEAD = re.compile(r"DataLoader worker|terminated abruptly")
LONGEST = 900  # characters of a sentence
Value = TypeVar("Value")


class UserError(Exception):
    """A mistake in the user's input; the command line prints it as one sentence and exits with code 2."""

    def __str__(self) -> str:
        text = printable(super().__str__())
        return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


def printable(text: object) -> str:
    """Show control characters of a text from a file or a server, which a terminal would obey, by their escapes."""
    if (text := str(text)).isprintable():  # nearly every one
        return text
    shown = (c.isprintable() or unicodedata.category(c) == "Zs" for c in text)
    return "".join(c if own else c.encode("unicode_escape").decode() for c, own in zip(text, shown, strict=True))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from, whether or not a traceback would show them."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def disk_full(error: BaseException) -> str | None:
    """Return how the disk says that it takes no more, where that is behind an error of Python, torch or safetensors."""
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno in FULL:
            return one.strerror
        if found := DISK.search(str(one)):
            return found[1] or os.strerror(errno.ENOSPC)
    return None


def curable(error: BaseException) -> str | None:
    """Say in a sentence what of the machine, and not of the program, is behind an error; None if it is the program."""
    if isinstance(error, UserError):
        return str(error)
    chain = list(_chain(error))
    texts = [f"{type(one).__name__} {one}" for one in chain]
    if any(isinstance(one, MemoryError) for one in chain) or any(map(MEMORY.search, texts)):
        return "the memory is full; end other programs, lower batch_size, raise accumulate, or use a larger machine"
    if any(map(DEAD.search, texts)) or any(map(_sender_is_gone, chain)):
        cure = "free memory and shared memory (df /dev/shm), or lower training.workers and the number of jobs"
        return f"a process of this job was killed, mostly because memory ran out; {cure}"
    if reason := disk_full(error):
        return f"cannot write {getattr(error, 'filename', None) or 'a file'}: {reason}; free some space"
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror}; fix its permissions, or name another place"
    return None


def _sender_is_gone(error: BaseException) -> bool:
    """Whether a process ended while another one was fetching a tensor from it, of which Python says no more than EOFError."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_filename == resource_sharer.__file__ for frame, _ in frames)


def nearest(name: str, valid: Iterable[str], shown: int = 8) -> str:
    """Say which valid names lie closest to ``name``: ``did you mean 'a'? (known: a, b)``."""
    names = sorted(map(str, valid))
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    known = ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}(known: {known})" if names else "(none are known)"


def pick(name: str, table: Mapping[str, Value], what: str, where: str = "") -> Value:
    """Look ``name`` up in ``table``; raise UserError naming ``what`` and the nearest valid names if it is absent."""
    if name in table:
        return table[name]
    raise UserError(f"{where + ': ' if where else ''}unknown {what} '{name}'; {nearest(name, table)}")
