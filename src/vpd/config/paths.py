"""Where everything of one scale lies; the workflows declare the same files, which a test compares."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ARCHIVES = Path("downloads/archives")  # downloads, kept for all scales
EVIDENCE = "evidence.csv"  # in the folder of a scale's results


WEIGHTS = Path("weights")  # networks in git, by the scale that made them


def shipped(scale: str, name: str) -> Path:
    """Folder in git of a checkpoint, a backbone or a trained experiment."""
    return WEIGHTS / scale / name


class Evaluated(NamedTuple):
    """What an evaluation leaves behind."""

    metrics: Path  # every number: milestone -> metric -> mean, sd and seeds
    headline: Path  # the one number that tables compare, for `dvc metrics`
    provenance: Path  # digests and times of what was measured; written last
    panels: Path  # folder of pictures


def evaluated(results: Path, name: str) -> Evaluated:
    """Return where the evaluation of ``name`` is below ``results``."""
    metrics, headline, provenance = (results / kind / f"{name}.json" for kind in ("metrics", "headlines", "provenance"))
    return Evaluated(metrics, headline, provenance, results / "panels" / name)


class Paths:
    """Folders and files of one scale. Those that are functions take the name of a dataset, checkpoint or experiment."""

    def __init__(self, scale: str, root: Path = Path()) -> None:
        self._state = root / ".vpd" / scale
        self.costs = root / "workflow" / "costs.json"  # file of ``vpd cost --out``, which is in git
        self.tracked = self._state / "tracked.json"  # summary of the last ``vpd track``
        self.datasets = root / "data" / scale
        self.dataset = _under(self.datasets)
        self.checkpoints = root / "checkpoints" / scale
        self.checkpoint = _under(self.checkpoints)
        self.pretraining = self.checkpoints / "pretraining"  # milestones of the small Stable Diffusion
        self.results = results = root / "results" / scale
        self.measures = results / "measures"  # of the small Stable Diffusion, at every milestone
        self.released = results / "released"
        self.evidence = results / EVIDENCE  # values of earlier runs (docs/claims.md); no stage makes it
        self.backbone_facts = _under(results / "backbones", ".json")  # manifest of a backbone, where git keeps it
        self.runs = _under(results / "runs")  # one folder per seed
        self.spec = _under(results / "specs", ".json")  # as it was trained
        self.history = _under(results / "history", ".csv")  # loss and learning rates of all seeds, by step

    def evaluated(self, name: str) -> Evaluated:
        """What the evaluation of an experiment leaves behind."""
        return evaluated(self.results, name)

    def timing(self, stage: str, name: str) -> Path:
        """How long the last run of a stage took."""
        return self.results / "timing" / stage / f"{name}.json"

    def state(self, stage: str, name: str = "") -> Path:
        """Folder of resumable states, which no orchestrator knows or deletes."""
        return self._state / stage / name

    @property
    def outside(self) -> Path:
        """What `vpd outside` leaves for DVC, so that it runs before the stages that use folders outside the project."""
        return self._state / "outside.txt"

    def key(self, stage: str, name: str) -> Path:
        """Fingerprint that the output of a stage should have, for Snakemake."""
        # Each in a folder of its own: Snakemake lists a folder once, and takes a file that is written there later for missing.
        return self._state / "keys" / stage / name / "key.json"


def _under(folder: Path, suffix: str = "") -> Callable[[str], Path]:
    return lambda name: folder / f"{name}{suffix}"
