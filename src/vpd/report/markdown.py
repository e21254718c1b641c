"""Texts of others in markdown: shown as they are, whatever markup, HTML or formula they hold."""

import re

from markupsafe import Markup

from vpd.utils.errors import printable

# An underscore within a word and an ampersand that begins no entity mean nothing.
SPECIAL = re.compile(r"[\\`*\[\]|~$<]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")
ENTITIES = {"<": "&lt;", "&": "&amp;"}


def escape(text: object) -> Markup:
    """Escape a text for a line or a cell of a table; text that is marked as markdown stays."""
    if isinstance(text, Markup):
        return text
    line = printable(" ".join(str(text).splitlines()))
    return Markup(SPECIAL.sub(lambda match: ENTITIES.get(match[0], f"\\{match[0]}"), line))


def code(text: str) -> Markup:
    """Format an id as code, in which only ``|`` and backticks have a meaning."""
    line = printable(" ".join(text.splitlines())).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return Markup(f"{fence} {line} {fence}" if "`" in line else f"`{line}`")


def prose(text: str) -> Markup:
    """Escape prose but for its ```code```."""
    parts = re.split(r"`([^`]+)`", text)
    return Markup("").join(code(part) if number % 2 else escape(part) for number, part in enumerate(parts))
