"""MLflow tracking: a view of the finished result files that can be rebuilt at will, and optional live logging.

The record is the files; nothing here is ever read back by another stage. This package is the only one that imports
mlflow, and only inside functions, because the import takes seconds.
"""

from __future__ import annotations

from vpd.tracking.compare import compare_links, compare_url, table_runs, ui_command
from vpd.tracking.live import Live
from vpd.tracking.locate import PREFIX, model_places
from vpd.tracking.store import Unavailable
from vpd.tracking.sync import Summary, sync
from vpd.tracking.tags import manifest_digests, places

__all__ = [
    "PREFIX",
    "Live",
    "Summary",
    "Unavailable",
    "compare_links",
    "compare_url",
    "manifest_digests",
    "model_places",
    "places",
    "sync",
    "table_runs",
    "ui_command",
]
