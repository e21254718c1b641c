"""Where everything of one scale lies; the workflows declare the same files, which a test compares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ARCHIVES = Path("downloads/archives")
"""Downloads, kept for all scales."""


@dataclass(frozen=True)
class Paths:
    """Folders and files of one scale, relative to the project's folder."""

    scale: str
    root: Path = Path()

    @property
    def archives(self) -> Path:
        """Folder of downloaded archives."""
        return self.root / ARCHIVES

    @property
    def datasets(self) -> Path:
        """Folder of all prepared datasets."""
        return self.root / "data" / self.scale

    @property
    def checkpoints(self) -> Path:
        """Folder of all checkpoints and backbones."""
        return self.root / "checkpoints" / self.scale

    @property
    def results(self) -> Path:
        """Folder of everything that is measured and shown."""
        return self.root / "results" / self.scale

    @property
    def pretraining(self) -> Path:
        """Folder of the small Stable Diffusion's milestones."""
        return self.checkpoints / "pretraining"

    @property
    def released(self) -> Path:
        """Folder of the results of released weights."""
        return self.results / "released"

    @property
    def costs(self) -> Path:
        """File of ``vpd cost --out``, which is in git."""
        return self.root / "workflow" / "costs.json"

    @property
    def tracked(self) -> Path:
        """Summary of the last ``vpd track``."""
        return self.root / ".vpd" / self.scale / "tracked.json"

    def dataset(self, name: str) -> Path:
        """Folder of one prepared dataset."""
        return self.datasets / name

    def checkpoint(self, name: str) -> Path:
        """Folder of one checkpoint or backbone."""
        return self.checkpoints / name

    def backbone_facts(self, name: str) -> Path:
        """Manifest of a backbone, where git keeps it."""
        return self.results / "backbones" / f"{name}.json"

    def runs(self, experiment: str) -> Path:
        """Folder of an experiment's runs, one per seed."""
        return self.results / "runs" / experiment

    def spec(self, experiment: str) -> Path:
        """Resolved spec of an experiment, as it was trained."""
        return self.results / "specs" / f"{experiment}.json"

    def history(self, experiment: str) -> Path:
        """Loss and learning rates of all seeds of an experiment, by step."""
        return self.results / "history" / f"{experiment}.csv"

    def metrics(self, experiment: str) -> Path:
        """Scores of all seeds and milestones of an experiment."""
        return self.results / "metrics" / f"{experiment}.json"

    def panels(self, experiment: str) -> Path:
        """Folder of an experiment's pictures."""
        return self.results / "panels" / experiment

    def timing(self, stage: str, name: str) -> Path:
        """How long the last run of a stage took."""
        return self.results / "timing" / stage / f"{name}.json"

    def state(self, stage: str, name: str = "") -> Path:
        """Folder of resumable states, which no orchestrator knows or deletes."""
        return self.root / ".vpd" / self.scale / stage / name

    def key(self, stage: str, name: str) -> Path:
        """Fingerprint that the output of a stage should have, for Snakemake."""
        return self.root / ".vpd" / self.scale / "keys" / stage / f"{name}.json"
