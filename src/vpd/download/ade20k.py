"""From ADEChallengeData2016.zip to the tree that vpd.datasets reads as ADE20K."""

import re
from collections.abc import Sequence
from pathlib import Path

from vpd.datasets.ade20k import FOLDER, SPLITS, TOPS, class_names, pairs
from vpd.download.archives import choose, errors_naming, extract, staged

_SPLIT = "|".join(SPLITS)
MEMBER = re.compile(
    rf"(?:.*/)?({FOLDER}/(?:images/(?:{_SPLIT})/\w[^/]*\.jpg|annotations/(?:{_SPLIT})/\w[^/]*\.png|objectInfo150\.txt))"
)


def prepare(files: dict[str, Path], out: Path) -> Sequence[str]:
    """Unpack images, labels and class names; UserError for an image or label without its counterpart."""
    archive = files["archive"]
    chosen = choose(archive, MEMBER, r"\1", f"{FOLDER}/images and {FOLDER}/annotations")
    with staged(out, "ade20k", TOPS) as stage:
        extract(archive, stage, chosen)
        with errors_naming(archive, stage):
            class_names(stage)
            for split in SPLITS:
                pairs(stage, split)
    return TOPS
