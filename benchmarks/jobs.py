"""Jobs that share a limited time, and the table of what they find."""

from __future__ import annotations

import gc
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from vpd.utils.files import write_json, write_text

Row = dict[str, Any]
Job = Callable[[float], Iterator[Row]]
"""Takes the time (``time.monotonic``) at which it should end, and yields rows."""
Item = TypeVar("Item")
NOT_RUN, NO_MEMORY, FAILED = "not run: time", "out of memory", "failed"


def turns(shares: Mapping[Item, float], end: float) -> Iterator[tuple[Item, float]]:
    """Yield each item and when its turn ends: after its share of the time that those before it have left."""
    left = sum(shares.values())
    for item, share in shares.items():
        now = time.monotonic()
        yield item, now + (end - now) * share / left
        left -= share


def run(parts: Mapping[str, tuple[float, Mapping[str, Job]]], end: float) -> Iterator[Row]:
    """Yield the rows of each part's jobs; a part has a share of the time, and its jobs have equal shares of that."""
    for part, part_end in turns({part: share for part, (share, _) in parts.items()}, end):
        jobs = parts[part][1]
        for name, job_end in turns(dict.fromkeys(jobs, 1.0), part_end):
            for row in attempt(name, jobs[name], job_end):
                yield {"part": part, **row}


def attempt(name: str, job: Job, end: float) -> Iterator[Row]:
    """Yield a job's rows, and one that says why there are no more; leave the GPU's memory empty."""
    try:
        if time.monotonic() < end:
            yield from job(end)
        else:
            yield {"case": name, "result": NOT_RUN}
    except torch.OutOfMemoryError:
        yield {"case": name, "result": NO_MEMORY}
    except Exception as error:  # the other jobs may succeed
        traceback.print_exc()
        yield {"case": name, "result": f"{FAILED}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class Table:
    """Rows as they come, on the screen and in ``NAME.md`` and ``NAME.json``."""

    def __init__(self, path: Path, columns: Sequence[str], about: Mapping[str, Any]) -> None:
        self.path, self.columns, self.about, self.rows = path, columns, dict(about), list[Row]()
        heads = [", ".join(f"{name} {value}" for name, value in about.items()), ""]
        self.lines = [*heads, f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        print("\n".join(self.lines), flush=True)

    def add(self, row: Row) -> None:
        """Show and store a row; one with a number that is not finite has failed."""
        wrong = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
        if wrong:
            row = {**row, **dict.fromkeys(wrong), "result": f"{FAILED}: {', '.join(wrong)} not finite"}
        self.rows.append(row)
        self.lines.append(f"| {' | '.join(_shown(row.get(name)) for name in self.columns)} |")
        print(self.lines[-1], flush=True)
        write_text(self.path.with_suffix(".md"), "\n".join(self.lines) + "\n")
        write_json(self.path.with_suffix(".json"), {"about": self.about, "rows": self.rows})

    @property
    def failed(self) -> bool:
        """Whether any row has failed."""
        return any(row.get("result", "").startswith(FAILED) for row in self.rows)


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
