"""The prompt of ``vpd demo``: what it names of what the networks know."""

import re
from dataclasses import dataclass

from vpd.utils.errors import UserError
from vpd.world.classes import COLOURS, LABELS, THINGS
from vpd.world.rooms import KINDS


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what it names."""

    text: str
    classes: list[str]  # in its order
    expression: str  # for one of its things, with its colour if any has one
    room: str | None  # scene class


def read_prompt(text: str) -> Prompt:
    """Find what a prompt names; UserError if none of ``THINGS`` is among it."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    places = [place for place, word in enumerate(words) if word in THINGS]
    if not places:
        raise UserError(f"the prompt names nothing that could be found in a room; name one of {', '.join(THINGS)}")
    coloured = [place for place in places if place and words[place - 1] in COLOURS]
    start, end = (coloured[0] - 1, coloured[0]) if coloured else (places[0], places[0])
    rooms = [kind for kind in KINDS if f" {kind.replace('_', ' ')} " in f" {' '.join(words)} "]
    return Prompt(
        text,
        list(dict.fromkeys(word for word in words if word in LABELS)),
        " ".join(["the", *words[start : end + 1]]),
        max(rooms, key=len, default=None),
    )
