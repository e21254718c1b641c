"""The ``backbone`` stage: downloads one backbone's public weights, or pre-trains it small."""

from __future__ import annotations

from vpd.config.params import Params
from vpd.config.paths import Paths
from vpd.pretrained.checkpoints import ORIGIN
from vpd.utils.files import exclusive, read_json, write_json
from vpd.utils.fingerprint import MANIFEST


def make_backbone(name: str, params: Params, paths: Paths) -> int:
    """Make the checkpoint folder of backbone ``name`` and copy its manifest to where git keeps it.

    Returns:
        Steps of its pre-training; 0 for public weights.
    """
    spec, block, out = params.backbone(name), params.block.backbones, paths.checkpoint(name)
    with exclusive(out):
        if spec.source == "pretrained":
            from vpd.pretraining.backbones.pretrain import pretrain_backbone

            captions, objects = paths.dataset(block.dataset), paths.dataset(block.objects)
            pretrain_backbone(name, spec, captions, objects, out, paths.state("backbone", name))
        else:
            from vpd.pretrained.backbones import fetch_backbone

            fetch_backbone(name, spec, out)
        origin = read_json(out / ORIGIN) if (out / ORIGIN).is_file() else {}
        write_json(paths.backbone_facts(name), {**origin, **read_json(out / MANIFEST)})
    return spec.training.steps if spec.training else 0
