"""ADEChallengeData2016.zip to the tree of vpd.datasets.ade20k."""

from __future__ import annotations

import re
from pathlib import Path

from vpd.datasets.ade20k import FOLDER, SPLITS, TOPS, class_names, pairs
from vpd.download.archives import extract
from vpd.download.staging import choose, file_of, naming, staged

_SPLIT = "|".join(SPLITS)
MEMBER = re.compile(
    rf"(?:.*/)?({FOLDER}/(?:images/(?:{_SPLIT})/\w[^/]*\.jpg|annotations/(?:{_SPLIT})/\w[^/]*\.png|objectInfo150\.txt))"
)


def prepare(files: dict[str, Path], out: Path) -> None:
    """Unpack images, labels and class names; UserError for a missing counterpart or an archive of something else."""
    archive = file_of(files, "archive", "ade20k")
    chosen = choose(archive, _target, f"{FOLDER}/images and {FOLDER}/annotations")
    with staged(out, "ade20k", TOPS) as stage:
        extract(archive, stage, members=chosen.get)
        with naming(archive, stage):
            class_names(stage)
            for split in SPLITS:
                pairs(stage, split)


def _target(name: str) -> str | None:
    match = MEMBER.fullmatch(name)
    return match and match[1]
