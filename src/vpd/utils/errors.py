"""Errors that a user can cure, each said in one sentence."""

import difflib
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")


class UserError(Exception):
    """A mistake in the user's input; the command line prints it as one sentence and exits with code 2."""

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: object) -> str:
    """Show control characters of a text from a file or a server, which a terminal would obey, by their escapes."""
    shown = (c.isprintable() or unicodedata.category(c) == "Zs" for c in str(text))
    return "".join(c if own else c.encode("unicode_escape").decode() for c, own in zip(str(text), shown, strict=True))


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
