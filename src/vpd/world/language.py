"""Captions and referring expressions for synthetic scenes, unambiguous by construction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np

from vpd.world.classes import CLASSES, LABELS, THINGS
from vpd.world.scene import Instance, Scene
from vpd.world.seeds import AROUND, LANGUAGE, Rng

LEAST_SHARE = 0.007
"""Smaller visible parts, relative to the image, are not referred to (but still count as something one could mean)."""
APART, DEEPER = 0.08, 0.3
"""How much farther left or right (of the image width) or nearer (metres) the target must be than any other thing, or people
would not agree which one is meant."""


# ---------------------------------------------------------------------------------------------------------- expressions
@dataclass(frozen=True)
class Head:
    """What a thing looks like; empty parts are left out."""

    size: str = ""
    pattern: str = ""
    colour: str = ""
    name: str = ""

    def among(self, instances: tuple[Instance, ...]) -> list[Instance]:
        """The instances that have every attribute."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name)}
        return [one for one in instances if all(getattr(one, key) == value for key, value in given.items())]

    def __str__(self) -> str:
        return " ".join(word for word in (self.size, self.pattern, self.colour, self.name or "thing") if word)


@dataclass(frozen=True)
class Expression:
    """A head, with at most a place among its like or a relation to another thing, the anchor."""

    head: Head
    place: str = ""
    relation: str = ""
    anchor: Head = Head()

    def is_clear(self, target: Instance, instances: tuple[Instance, ...]) -> bool:
        """Whether it means the target alone, by its plain sense and visibly so."""
        alike = self.head.among(instances)
        if self.place:
            return PLACES[self.place](alike) == [target] and _clearly_placed(self.place, target, alike)
        if self.relation:
            measure, anchors = RELATIONS[self.relation], self.anchor.among(instances)
            meant = [one for one in alike if any(measure(one, other) > 0 for other in anchors if other != one)]
            return meant == [target] and len(anchors) == 1 and measure(target, anchors[0]) > 1.0
        return alike == [target]


def _extreme(measure: Callable[[Instance], float]) -> Callable[[list[Instance]], list[Instance]]:
    return lambda alike: [one for one in alike if measure(one) == max(map(measure, alike))]


PLACES: dict[str, Callable[[list[Instance]], list[Instance]]] = {
    "left": _extreme(lambda one: -one.across),
    "right": _extreme(lambda one: one.across),
    "front": _extreme(lambda one: -one.distance),
    "back": _extreme(lambda one: one.distance),
    "middle": lambda alike: sorted(alike, key=lambda one: one.across)[1:2] if len(alike) == 3 else [],
}
RELATIONS: dict[str, Callable[[Instance, Instance], float]] = {
    "left of": lambda one, other: (other.across - one.across) / APART,
    "right of": lambda one, other: (one.across - other.across) / APART,
    "in front of": lambda one, other: (other.distance - one.distance) / DEEPER,
    "behind": lambda one, other: (one.distance - other.distance) / DEEPER,
}
"""How far the first instance stands in the relation to the second: positive if it does, above 1 if visibly so."""


def _clearly_placed(place: str, target: Instance, alike: list[Instance]) -> bool:
    others = [one for one in alike if one != target]
    if place in ("front", "back"):
        return bool(others) and all(abs(one.distance - target.distance) > DEEPER for one in others)
    if not others:
        return target.across < 0.4 if place == "left" else target.across > 0.6
    return all(abs(one.across - target.across) > APART for one in others)


def referable(scene: Scene) -> list[Instance]:
    """Instances large enough to be referred to."""
    return [one for one in scene.instances if one.area >= LEAST_SHARE * scene.picture.labels.size]


def _heads(target: Instance) -> list[Head]:
    sets = ("name", "colour name", "colour", "size name", "pattern name", "size colour name", "pattern colour name",
            "size pattern colour name")  # fmt: skip
    looks = [{key: getattr(target, key) for key in keys.split()} for keys in sets]
    return list(dict.fromkeys(Head(**look) for look in looks if all(look.values())))


def attributes(target: Instance, instances: tuple[Instance, ...]) -> list[Expression]:
    """Expressions that tell the target by its looks alone."""
    return [one for one in map(Expression, _heads(target)) if one.is_clear(target, instances)]


def positions(target: Instance, instances: tuple[Instance, ...]) -> list[Expression]:
    """Expressions that tell it by its place among its like."""
    heads = [head for head in _heads(target) if head.name and not head.size and not head.pattern]
    candidates = [Expression(head, place) for head in heads for place in PLACES]
    return [one for one in candidates if one.is_clear(target, instances)]


def relations(target: Instance, instances: tuple[Instance, ...]) -> list[Expression]:
    """Expressions that tell it by where it is relative to another thing that its looks single out."""
    candidates = []
    for anchor in (anchor for anchor in instances if anchor != target):
        anchors = [one.head for one in attributes(anchor, instances) if one.head.name]
        heads = [head for head in _heads(target) if head.name and anchors]
        candidates += [Expression(head, "", relation, anchors[-1]) for head in heads for relation in RELATIONS]
    return [one for one in candidates if one.is_clear(target, instances)]


# ---------------------------------------------------------------------------------------------------------------- words
PLACE_FORMS = {
    "left": ("left {head}", "{head} on the left", "the {head} on left", "leftmost {head}"),
    "right": ("right {head}", "{head} on the right", "the {head} on right", "rightmost {head}"),
    "front": ("front {head}", "{head} in front", "closest {head}"),
    "back": ("back {head}", "{head} in the back", "farthest {head}"),
    "middle": ("middle {head}", "{head} in the middle", "center {head}"),
}
LOOK_FORMS = ("{head}", "the {head}", "{head}")
LONG_FORMS = {
    "left of": ("{a} {head} to the left of the {anchor}", "the {head} that is on the left of the {anchor} in the {room}"),
    "right of": ("{a} {head} to the right of the {anchor}", "the {head} that is on the right of the {anchor} in the {room}"),
    "in front of": ("{a} {head} in front of the {anchor}", "the {head} standing in front of the {anchor} in the {room}"),
    "behind": ("{a} {head} behind the {anchor}", "the {head} that is farther away than the {anchor} in the {room}"),
}  # fmt: skip
LONG_LOOK_FORMS = (
    "{a} {head} in {a_room}",
    "the {head} that stands in the {room}",
    "{a} {head} in this picture of {a_room}",
)


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def phrase(rng: Rng, expression: Expression, kind: str, long: bool) -> str:
    """Word an expression about a thing in a room of ``kind``; ``long`` gives the longer sentences of RefCOCOg."""
    if expression.relation:
        form = rng.pick(LONG_FORMS[expression.relation])
    elif expression.place:
        form = rng.pick(PLACE_FORMS[expression.place])
    else:
        form = rng.pick(LONG_LOOK_FORMS if long else LOOK_FORMS)
    head, room = str(expression.head), kind.replace("_", " ")
    article = _with_article(head).split()[0]
    return form.format(head=head, a=article, anchor=expression.anchor, room=room, a_room=_with_article(room))


PLACED, LISTED = 2, 5
"""Things in one caption at most, with their places and without: as many as the short texts of a small text encoder hold."""
SIDES = {"on the left": (0.0, 0.36), "in the middle": (0.36, 0.64), "on the right": (0.64, 1.0)}
"""Where the centre of a thing lies in the image, from 0 to 1."""


def captions(scene: Scene) -> Iterator[str]:
    """Endless captions of a scene: the first name its room and every thing with colour and place, most others list things."""
    rng, seen = Rng(scene.seed, LANGUAGE), referable(scene)
    place = _with_article(scene.room.kind.replace("_", " "))
    named = [_with_article(_colour_and_name(one)) for one in seen]
    placed = rng.shuffled([f"{thing} {_side(one)}" for thing, one in zip(named, seen, strict=True)])
    for first in range(0, len(placed), PLACED):
        yield f"{place} with {_joined(placed[first : first + PLACED])}"
    while True:
        # Long lists teach which words belong to which pixels, short captions what a single word looks like.
        form = rng.count(0, 9)
        if form < 5 and seen:
            yield f"{place} with {_joined(rng.shuffled(named)[:LISTED])}"
        elif form < 7:
            parts = rng.shuffled([_with_article(_name(rng, one)) for one in seen] + _surroundings(rng, scene))
            yield f"{rng.pick((f'a photo of {place} with ', f'{place} with ', ''))}{_joined(parts[: rng.count(1, 4)])}"
        elif form == 7 or not seen:
            yield rng.pick(("a photo of {}", "{}")).format(rng.pick([place, *_surroundings(rng, scene)]))
        elif form == 8 and len(seen) > 1:
            yield _relation(rng, seen)
        else:
            one = rng.pick(seen)
            thing, side = _with_article(_name(rng, one)), _side(one)
            yield rng.pick((f"a photo of {thing}", f"a photo of {thing}", thing, f"{thing} {side}"))


def request(scene: Scene) -> tuple[str, Instance] | None:
    """Return a prompt that names the room and one thing with its colour, and the thing; None if none is large enough."""
    things = [one for one in referable(scene) if one.colour]
    if not things:
        return None
    one = Rng(scene.seed, AROUND).pick(things)
    room = _with_article(scene.room.kind.replace("_", " "))
    return f"{room} with {_with_article(_colour_and_name(one))}", one


def _surroundings(rng: Rng, scene: Scene) -> list[str]:
    """What a caption may say of the room itself, as far as it is visible: openings, wall, floor and ceiling."""
    areas = np.bincount(scene.picture.labels.ravel(), minlength=len(CLASSES) + 1)
    visible = [name for name, label in LABELS.items() if areas[label] >= LEAST_SHARE * scene.picture.labels.size]
    looks = {"wall": scene.room.wall, "floor": scene.room.floor}
    named = {name: rng.pick((f"{look} {name}", name)) for name, look in looks.items()}
    return [_with_article(named.get(name, name)) for name in visible if name not in THINGS]


def _joined(parts: list[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)}{' and ' if first else ''}{last}"


def _side(instance: Instance) -> str:
    return next(words for words, (low, high) in SIDES.items() if low <= instance.across <= high)


def _colour_and_name(instance: Instance) -> str:
    return str(Head(colour=instance.colour, name=instance.name))


def _name(rng: Rng, instance: Instance) -> str:
    if rng.chance(0.2):
        return instance.name
    full = rng.chance(0.25)
    return str(Head(instance.size if full else "", instance.pattern if full else "", instance.colour, instance.name))


def _relation(rng: Rng, seen: list[Instance]) -> str:
    one, other = rng.shuffled(seen)[:2]
    relation = max(RELATIONS, key=lambda name: RELATIONS[name](one, other))
    first, second = (_with_article(_name(rng, thing)) for thing in (one, other))
    return f"{first} {relation} {second}"
