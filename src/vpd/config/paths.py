"""Where everything of one scale lies; the workflows declare the same files, which a test compares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

ARCHIVES = Path("downloads/archives")
"""Downloads, kept for all scales."""


class Paths:
    """Folders and files of one scale. Those that are functions take the name of a dataset, checkpoint or experiment.

    Args:
        scale: block of ``scales``.
        root: the project's folder.
    """

    def __init__(self, scale: str, root: Path = Path()) -> None:
        self._state = root / ".vpd" / scale
        self.archives = root / ARCHIVES
        self.costs = root / "workflow" / "costs.json"
        """File of ``vpd cost --out``, which is in git."""
        self.tracked = self._state / "tracked.json"
        """Summary of the last ``vpd track``."""
        self.datasets = root / "data" / scale
        self.dataset = _under(self.datasets)
        self.checkpoints = root / "checkpoints" / scale
        self.checkpoint = _under(self.checkpoints)
        """Folder of a checkpoint or backbone."""
        self.pretraining = self.checkpoints / "pretraining"
        """Milestones of the small Stable Diffusion."""
        self.results = results = root / "results" / scale
        self.released = results / "released"
        """Results of released weights."""
        self.backbone_facts = _under(results / "backbones", ".json")
        """Manifest of a backbone, where git keeps it."""
        self.runs = _under(results / "runs")
        """Folder of an experiment's runs, one per seed."""
        self.spec = _under(results / "specs", ".json")
        """Resolved spec of an experiment, as it was trained."""
        self.history = _under(results / "history", ".csv")
        """Loss and learning rates of all seeds of an experiment, by step."""
        self.metrics = _under(results / "metrics", ".json")
        """Scores of all seeds and milestones of an experiment."""
        self.panels = _under(results / "panels")
        """Folder of an experiment's pictures."""

    def timing(self, stage: str, name: str) -> Path:
        """How long the last run of a stage took."""
        return self.results / "timing" / stage / f"{name}.json"

    def state(self, stage: str, name: str = "") -> Path:
        """Folder of resumable states, which no orchestrator knows or deletes."""
        return self._state / stage / name

    def key(self, stage: str, name: str) -> Path:
        """Fingerprint that the output of a stage should have, for Snakemake."""
        return self._state / "keys" / stage / f"{name}.json"


def _under(folder: Path, suffix: str = "") -> Callable[[str], Path]:
    return lambda name: folder / f"{name}{suffix}"
