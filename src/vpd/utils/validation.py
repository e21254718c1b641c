"""Validate plain data against pydantic models; a mistake becomes one sentence that names the key and the nearest valid ones."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails
from typing_extensions import is_typeddict

from vpd.utils.digests import digest
from vpd.utils.errors import UserError, nearest
from vpd.utils.files import AGAIN, read_json

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+_-]{0,63}")
SHORT = reprlib.Repr()  # of what was found: a few lines of YAML can stand for gigabytes
SHORT.maxstring = SHORT.maxother = 80


class Frozen(BaseModel):
    """Base of all settings: immutable, without unknown keys; docstrings of attributes become the reference in docs/params.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any) -> Any:
        # pydantic, as Python, takes true for 1: `steps: true` would train one step.
        for name, field in cls.model_fields.items() if isinstance(value, Mapping) else ():
            if isinstance(value.get(name), bool) and bool not in (field.annotation, *get_args(field.annotation)):
                raise ValueError(f"{name} takes neither true nor false")
        return value

    def digest(self) -> str:
        """Return sixteen hex digits that change when any value changes."""
        return digest(self.model_dump(mode="json"))


def _named(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError("a name has letters, digits, '+', '-' and '_', at most 64, and begins with a letter or digit")
    return name


Name = Annotated[str, AfterValidator(_named)]
"""A name that params.yaml gives, of an experiment, dataset, milestone, ...: it becomes part of paths and commands."""
Kind = TypeVar("Kind")
_adapter: Any = cache(TypeAdapter)


def checked(kind: type[Kind], value: object, where: str, cure: str = "correct it") -> Kind:
    """Validate plain data from ``where`` (file and key path); UserError with the first problem, its key path and the cure."""
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        raise UserError(_sentence(kind, error.errors()[0], where, cure)) from None


def read_as(kind: type[Kind], path: Path, cure: str = AGAIN) -> Kind:
    """Read a JSON file as a model, TypedDict or another type; UserError with ``cure`` if it is not one.

    A TypedDict also keeps the keys that its type does not name.
    """
    value = read_json(path, object, cure)
    read = checked(kind, value, str(path), cure)
    return value if is_typeddict(kind) else read


def _sentence(kind: Any, problem: ErrorDetails, where: str, cure: str) -> str:
    path, fields = _follow(_models_in(kind), problem["loc"])
    at = f"{where}: {'.'.join(path)}" if path else where
    if problem["type"] == "extra_forbidden":
        return f"{at} is not a known key; {nearest(path[-1], fields)}"
    if problem["type"] == "missing":
        return f"{at} is missing; {cure.replace('correct', 'add')}"
    message = problem["msg"].removeprefix("Value error, ")
    value = f", found {SHORT.repr(problem['input'])}" if not isinstance(problem["input"], dict) else ""
    return f"{at}: {message[0].lower() + message[1:]}{value}; {cure}"


def _follow(here: list[type[BaseModel]], loc: Sequence[int | str]) -> tuple[list[str], list[str]]:
    """Return the key path of a pydantic location and the fields of the models that its last key belongs to."""
    path: list[str] = []
    fields = [name for one in here for name in one.model_fields]
    for part in loc:
        tagged = [one for one in here if len(here) > 1 and part in get_args(one.model_fields["kind"].annotation)]
        if tagged:  # pydantic puts the tag of a union behind its key, where the file has nothing
            here = tagged
        if tagged or part == "[key]":
            continue
        path.append(str(part))
        fields = [name for one in here for name in one.model_fields]
        inner = [one.model_fields[part].annotation for one in here if part in one.model_fields]
        if inner:  # otherwise an index, or a key of the user's choice: the models stay
            here = _models_in(inner[0])
    return path, fields


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models inside an annotation such as ``dict[str, DatasetSpec]`` or ``AutoencoderSpec | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]
