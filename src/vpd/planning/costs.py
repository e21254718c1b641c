"""The file of ``vpd cost --out``, read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from vpd.utils.errors import UserError
from vpd.utils.files import read_json

Entry = TypeVar("Entry", bound=BaseModel)


def read_entries(path: Path, entry: type[Entry]) -> dict[str, Entry]:
    """Read what ``entry`` describes of every experiment; UserError naming the first key that does not fit."""
    try:
        return TypeAdapter(dict[str, entry]).validate_python(read_json(path))  # type: ignore[valid-type]
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{path} is not a file of costs ({key}); write it again with vpd cost --out") from None
