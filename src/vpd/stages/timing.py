"""How long a stage took and how much memory it needed."""

from __future__ import annotations

import resource
import time
from pathlib import Path

from vpd.utils.files import write_json


class Stopwatch:
    """Runs from its creation on."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def write(self, path: Path, stage: str, name: str, **facts: object) -> None:
        """Write ``{"stage", "name", "seconds", "peak_mb", ...}`` to ``path``; the peak counts child processes too."""
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
        seconds = round(time.monotonic() - self.started, 2)
        write_json(path, {"stage": stage, "name": name, "seconds": seconds, "peak_mb": round(peak), **facts})
