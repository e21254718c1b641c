"""MLflow tracking: a view of the finished result files that can be rebuilt at will, and optional live logging.

The files are the record; no other stage reads anything back from MLflow. This package alone imports mlflow, and only
inside functions, because the import takes seconds.
"""

from vpd.tracking.live import Live
from vpd.tracking.models import model_places
from vpd.tracking.store import shown
from vpd.tracking.sync import Summary, compare_links, sync, ui_command

__all__ = ["Live", "Summary", "compare_links", "model_places", "shown", "sync", "ui_command"]
