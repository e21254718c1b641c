"""Validate plain data against pydantic models; a mistake becomes one sentence that names the key and the nearest valid ones."""

from collections.abc import Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from vpd.utils.digests import digest
from vpd.utils.errors import UserError, nearest


class Frozen(BaseModel):
    """Base of all settings: immutable, without unknown keys; docstrings of attributes become the reference in docs/params.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def digest(self) -> str:
        """Return sixteen hex digits that change when any value changes."""
        return digest(self.model_dump(mode="json"))


Model = TypeVar("Model", bound=BaseModel)


def checked(model: type[Model], value: object, where: str) -> Model:
    """Validate plain data from ``where`` (file and key path); UserError with the first problem and its key path."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UserError(_sentence(model, error.errors()[0], where)) from None


def _sentence(model: type[BaseModel], problem: ErrorDetails, where: str) -> str:
    path, fields = _follow(model, problem["loc"])
    at = f"{where}: {'.'.join(path)}" if path else where
    if problem["type"] == "extra_forbidden":
        return f"{at} is not a known key; {nearest(path[-1], fields)}"
    if problem["type"] == "missing":
        return f"{at} is missing; add it"
    message = problem["msg"].removeprefix("Value error, ")
    value = f", found {problem['input']!r}" if not isinstance(problem["input"], dict) else ""
    return f"{at}: {message[0].lower() + message[1:]}{value}; correct it"


def _follow(model: type[BaseModel], loc: Sequence[int | str]) -> tuple[list[str], list[str]]:
    """Return the key path of a pydantic location and the fields of the model that its last key belongs to."""
    path: list[str] = []
    here, fields = [model], list(model.model_fields)
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
