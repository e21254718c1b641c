"""Captions and referring expressions for drawn scenes, unambiguous by construction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

from vpd.world.scene import Instance, Scene
from vpd.world.seeds import Rng

LEAST_SHARE = 0.007
"""Smaller visible parts, relative to the image, are not referred to (but still count as something one could mean)."""
APART, DEEPER = 0.08, 0.3
"""How much farther left or right (of the image width) or nearer (metres) the meant thing must be than any other."""


@dataclass(frozen=True)
class Head:
    """What a thing looks like; empty parts are not said."""

    size: str = ""
    pattern: str = ""
    colour: str = ""
    name: str = ""

    def fits(self, instance: Instance) -> bool:
        """Whether the instance has every said attribute."""
        return all(getattr(self, f.name) in ("", getattr(instance, f.name)) for f in fields(self))

    def __str__(self) -> str:
        words = (self.size, self.pattern, self.colour, self.name or "thing")
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Expression:
    """A head, with at most a place among its like or a relation to another thing."""

    head: Head
    place: str = ""
    relation: str = ""
    anchor: Head | None = None

    def meant(self, instances: tuple[Instance, ...]) -> list[Instance]:
        """All instances that the expression can mean, by its plain sense."""
        found = [instance for instance in instances if self.head.fits(instance)]
        if self.place:
            return PLACES[self.place](found)
        if self.relation:
            anchors = [instance for instance in instances if self.anchor.fits(instance)]
            return [
                one
                for one in found
                if any(RELATIONS[self.relation](one, other) > 0 for other in anchors if other != one)
            ]
        return found

    def clear(self, target: Instance, instances: tuple[Instance, ...]) -> bool:
        """Whether it means the target alone, and visibly so."""
        if self.meant(instances) != [target]:
            return False
        if self.place:
            return _clearly_placed(self.place, target, [one for one in instances if self.head.fits(one)])
        if self.relation:
            anchors = [instance for instance in instances if self.anchor.fits(instance)]
            return len(anchors) == 1 and RELATIONS[self.relation](target, anchors[0]) > 1.0
        return True


def _extreme(measure: Callable[[Instance], float]) -> Callable[[list[Instance]], list[Instance]]:
    """Keep the instances with the largest measure."""
    return lambda found: [one for one in found if measure(one) == max(map(measure, found))]


def _middle(found: list[Instance]) -> list[Instance]:
    """Of exactly three, the one between the others."""
    return sorted(found, key=lambda one: one.across)[1:2] if len(found) == 3 else []


PLACES: dict[str, Callable[[list[Instance]], list[Instance]]] = {
    "left": _extreme(lambda one: -one.across),
    "right": _extreme(lambda one: one.across),
    "front": _extreme(lambda one: -one.distance),
    "back": _extreme(lambda one: one.distance),
    "middle": _middle,
}
RELATIONS: dict[str, Callable[[Instance, Instance], float]] = {
    "left of": lambda one, other: (other.across - one.across) / APART,
    "right of": lambda one, other: (one.across - other.across) / APART,
    "in front of": lambda one, other: (other.distance - one.distance) / DEEPER,
    "behind": lambda one, other: (one.distance - other.distance) / DEEPER,
}
"""How far the first instance stands in the relation to the second: positive if it does, above 1 if visibly so."""


def _clearly_placed(place: str, target: Instance, found: list[Instance]) -> bool:
    others = [one for one in found if one != target]
    if place in ("front", "back"):
        return bool(others) and all(abs(one.distance - target.distance) > DEEPER for one in others)
    if not others:
        return target.across < 0.4 if place == "left" else target.across > 0.6
    return all(abs(one.across - target.across) > APART for one in others)


def referable(scene: Scene) -> list[Instance]:
    """Instances large enough to be referred to."""
    pixels = scene.picture.labels.size
    return [one for one in scene.instances if one.area >= LEAST_SHARE * pixels]


def _heads(target: Instance) -> list[Head]:
    """Ways to name the target by its looks, shortest first."""
    full = {"size": target.size, "pattern": target.pattern, "colour": target.colour, "name": target.name}
    sets = (("name",), ("colour", "name"), ("colour",), ("size", "name"), ("pattern", "name"), ("size", "colour", "name"),
            ("pattern", "colour", "name"), ("size", "pattern", "colour", "name"))  # fmt: skip
    heads = (Head(**{key: full[key] for key in keys}) for keys in sets if all(full[key] for key in keys))
    return list(dict.fromkeys(heads))


def attributes(target: Instance, instances: tuple[Instance, ...]) -> list[Expression]:
    """Expressions that tell the target by its looks alone."""
    return [e for e in map(Expression, _heads(target)) if e.clear(target, instances)]


def positions(target: Instance, instances: tuple[Instance, ...]) -> list[Expression]:
    """Expressions that tell it by its place among its like."""
    heads = [head for head in _heads(target) if head.name and not head.size and not head.pattern]
    found = [Expression(head, place) for head in heads for place in PLACES]
    return [e for e in found if e.clear(target, instances)]


def relations(target: Instance, instances: tuple[Instance, ...]) -> list[Expression]:
    """Expressions that tell it by where it is relative to another thing that its looks single out."""
    found = []
    for anchor in instances:
        shortest = [e.head for e in attributes(anchor, instances) if e.head.name] if anchor != target else []
        for head in _heads(target):
            if head.name and shortest:
                found += [Expression(head, "", relation, shortest[-1]) for relation in RELATIONS]
    return [e for e in found if e.clear(target, instances)]


PLACE_FORMS = {
    "left": ("left {head}", "{head} on the left", "the {head} on left", "leftmost {head}"),
    "right": ("right {head}", "{head} on the right", "the {head} on right", "rightmost {head}"),
    "front": ("front {head}", "{head} in front", "closest {head}"),
    "back": ("back {head}", "{head} in the back", "farthest {head}"),
    "middle": ("middle {head}", "{head} in the middle", "center {head}"),
}
LOOK_FORMS = ("{head}", "the {head}", "{head}")
LONG_FORMS = {
    "left of": (
        "{a} {head} to the left of the {anchor}",
        "the {head} that is on the left of the {anchor} in the {room}",
    ),
    "right of": (
        "{a} {head} to the right of the {anchor}",
        "the {head} that is on the right of the {anchor} in the {room}",
    ),
    "in front of": (
        "{a} {head} in front of the {anchor}",
        "the {head} standing in front of the {anchor} in the {room}",
    ),
    "behind": ("{a} {head} behind the {anchor}", "the {head} that is farther away than the {anchor} in the {room}"),
}
LONG_LOOK_FORMS = (
    "{a} {head} in {a_room}",
    "the {head} that stands in the {room}",
    "{a} {head} in this picture of {a_room}",
)


def article(words: str) -> str:
    """``a`` or ``an``."""
    return "an" if words[0] in "aeiou" else "a"


def room_name(kind: str) -> str:
    """``living_room`` -> ``living room``."""
    return kind.replace("_", " ")


def phrase(rng: Rng, expression: Expression, kind: str, long: bool) -> str:
    """Say the expression in one of its wordings."""
    if expression.relation:
        form = rng.pick(LONG_FORMS[expression.relation])
    elif expression.place:
        form = rng.pick(PLACE_FORMS[expression.place])
    else:
        form = rng.pick(LONG_LOOK_FORMS if long else LOOK_FORMS)
    head, room = str(expression.head), room_name(kind)
    return form.format(
        head=head, a=article(head), anchor=expression.anchor, room=room, a_room=f"{article(room)} {room}"
    )


def captions(scene: Scene) -> Iterator[str]:
    """Endless captions of a scene: its room, its things with colours, and how two of them stand."""
    rng, kind = scene.rng(), room_name(scene.room.kind)
    place = f"{article(kind)} {kind}"
    seen = referable(scene)
    stuff = sorted({o.name for o in scene.room.openings if o.name != "picture"} | {"wall", "floor", "ceiling"})
    while True:
        form = rng.count(0, 9)
        named = [_name(rng, one) for one in rng.shuffled(seen)]
        listed = [f"{article(name)} {name}" for name in named]
        if form == 0 or not seen:
            yield rng.pick((f"a photo of {place}", f"a photo of the {kind}", f"{place}"))
        elif form == 1:
            yield f"a photo of {rng.pick(listed)}"
        elif form == 2:
            thing = rng.pick((rng.pick(seen).name, rng.pick(stuff)))
            yield f"a photo of {article(thing)} {thing}"
        elif form == 3:
            yield f"{place} with {scene.room.wall} walls and a {scene.room.floor} floor"
        elif form == 4:
            yield f"a photo of {place} with {listed[0]} and a {rng.pick(stuff)}"
        elif form in (5, 6) and len(seen) > 1:
            yield f"a photo of {place} with {_relation(rng, seen)}"
        elif form == 7 and len(seen) > 1:
            yield f"{_relation(rng, seen)} in {place}"
        else:
            yield f"a photo of {place} with {_series(listed[:3])}"


def _name(rng: Rng, instance: Instance) -> str:
    """Colour and noun, now and then with size and pattern."""
    full = rng.chance(0.4)
    return str(Head(instance.size if full else "", instance.pattern if full else "", instance.colour, instance.name))


def _series(parts: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join(([", ".join(parts[:-1])] if len(parts) > 1 else []) + parts[-1:])


def _relation(rng: Rng, seen: list[Instance]) -> str:
    """Two things and how the first stands to the second."""
    one, other = rng.shuffled(seen)[:2]
    relation = max(RELATIONS, key=lambda name: RELATIONS[name](one, other))
    names = [_name(rng, thing) for thing in (one, other)]
    return f"{article(names[0])} {names[0]} {relation} {article(names[1])} {names[1]}"
