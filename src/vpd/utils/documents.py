"""YAML files: each key once, at most so deep and so large when its aliases are replaced, and nothing but plain data."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from vpd.utils.errors import UserError
from vpd.utils.files import read_text

RESTORE = "correct it, or restore it from the repository"
DEEPEST = 100
LARGEST = 1_000_000  # values; a few lines of aliases of aliases stand for billions
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader is optional


class _UniqueKeys(Loader):
    """YAML loader that refuses a repeated key, of which plain YAML would silently drop one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (self.construct_object(key, True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"):
            line = f"(line {node.start_mark.line + 1} and after)"
            if not isinstance(key, Hashable):
                raise yaml.YAMLError(f"a list or mapping stands where a key belongs {line}")
            if key in seen:
                raise yaml.YAMLError(f"the key '{key}' stands twice {line}")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, missing: str) -> Any:
    """Read a YAML file without running anything in it; UserError if it is missing (cure: ``missing``) or damaged."""
    text = read_text(path, RESTORE, missing)
    try:
        _check_size(text)
        return yaml.load(text, Loader=_UniqueKeys)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:  # impossible dates, huge numbers, odd tags
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}; correct that line") from None


def _check_size(text: str) -> None:
    """Raise YAMLError for what would exhaust stack or memory; the parser's events take little of both."""
    sizes: dict[str, int] = {}
    still_open: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, Loader=Loader):
        total, line = total + 1, f"(line {event.start_mark.line + 1})" if event.start_mark else ""
        if isinstance(event, yaml.CollectionStartEvent):
            still_open.append((event.anchor, total))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, begin = still_open.pop()
            sizes |= {anchor: total - begin} if anchor else {}
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in {anchor for anchor, _ in still_open}:
                raise yaml.YAMLError(f"*{event.anchor} stands for itself {line}")
            total += sizes.get(event.anchor or "", 0)
        if len(still_open) > DEEPEST or total > LARGEST:
            raise yaml.YAMLError(f"it is nested too deeply or too large {line}")
