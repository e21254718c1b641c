"""Write RefCOCO, RefCOCO+ and RefCOCOg: one set of images and masks, three sets of sentences."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
from numpy import ndarray

from vpd.datasets.images import save_jpeg
from vpd.datasets.refcoco import IMAGES
from vpd.utils.files import atomic_path, write_text
from vpd.world.classes import LABELS, THINGS
from vpd.world.language import Expression, attributes, phrase, positions, referable, relations
from vpd.world.scene import Instance, Scene, draw_scene
from vpd.world.seeds import Job, Rng

FILES = {"refcoco": "refs(unc).p", "refcoco+": "refs(unc).p", "refcocog": "refs(umd).p"}
MOST_SENTENCES = {"refcoco": 3, "refcoco+": 3, "refcocog": 2}
MOST_THINGS = 100
LEAST_SHARE = 0.05
"""Of the image that a referred thing covers; the games behind the real sets asked for things of that size too."""
UMD_SPLITS = {"train": "train", "val": "val", "testA": "test", "testB": "test"}
PICKLE_PROTOCOL = 2
"""As the real files, which Python 2 wrote."""
Run = tuple[int, int]
"""Half-open range of columns."""


def draw_refcoco(job: Job) -> dict:
    """Write the image; its COCO entries, and per variant the sentences of each thing."""
    scene = draw_scene(job.seed, *job.size)
    name = f"COCO_train2014_{job.number + 1:012d}.jpg"
    save_jpeg(job.root / IMAGES / name, scene.picture.image)
    image = {"id": job.number + 1, "file_name": name, "width": job.size[0], "height": job.size[1], "license": 0}
    annotations = [_annotation(scene, instance, job.number + 1) for instance in scene.instances]
    rng, sentences = scene.rng(), {variant: {} for variant in FILES}
    least = LEAST_SHARE * job.size[0] * job.size[1]
    for target in referable(scene):
        if target.area < least or (job.split == "testA" and not target.toy) or (job.split == "testB" and target.toy):
            continue
        for variant in FILES:
            found = _sentences(rng, variant, target, scene)
            if found:
                sentences[variant][target.index] = found
    return {"image": image, "annotations": annotations, "sentences": sentences}


def _annotation(scene: Scene, instance: Instance, image_id: int) -> dict:
    return {
        "id": _annotation_id(image_id, instance.index),
        "image_id": image_id,
        "category_id": LABELS[instance.name],
        "segmentation": polygons(scene.mask(instance)),
        "bbox": [float(value) for value in instance.box],
        "area": float(instance.area),
        "iscrowd": 0,
    }


def _annotation_id(image_id: int, index: int) -> int:
    return image_id * MOST_THINGS + index + 1


def _sentences(rng: Rng, variant: str, target: Instance, scene: Scene) -> list[str]:
    """Different wordings for one thing, as the variant allows."""
    looks = attributes(target, scene.instances)
    expressions: list[Expression] = {
        "refcoco": lambda: positions(target, scene.instances) + [e for e in looks if e.head.name],
        "refcoco+": lambda: looks,
        "refcocog": lambda: relations(target, scene.instances) + [e for e in looks if e.head.name],
    }[variant]()
    chosen = rng.shuffled(expressions)[: rng.count(1, MOST_SENTENCES[variant])]
    said = [phrase(rng, expression, scene.room.kind, long=variant == "refcocog") for expression in chosen]
    return list(dict.fromkeys(said))


def finish_refcoco(root: Path, jobs: list[Job], facts: list[dict]) -> None:
    """Write instances.json and the pickled references of each variant."""
    (root / IMAGES).mkdir(parents=True, exist_ok=True)
    coco = {
        "info": {"description": "drawn rooms", "version": "1.0"},
        "licenses": [{"id": 0, "name": "drawn, free of rights"}],
        "images": [fact["image"] for fact in facts],
        "annotations": [annotation for fact in facts for annotation in fact["annotations"]],
        "categories": [{"supercategory": "thing", "id": LABELS[name], "name": name} for name in THINGS],
    }
    text = json.dumps(coco)
    for variant, file in FILES.items():
        write_text(root / variant / "instances.json", text)
        with atomic_path(root / variant / file) as path:
            # Equal texts must not be one object, or the pickle would tell which process they came from.
            refs = json.loads(json.dumps(_refs(variant, jobs, facts)))
            path.write_bytes(pickle.dumps(refs, protocol=PICKLE_PROTOCOL))


def _refs(variant: str, jobs: list[Job], facts: list[dict]) -> list[dict]:
    """References in the schema of the real files."""
    refs: list[dict] = []
    sent_id = 0
    for job, fact in zip(jobs, facts, strict=True):
        categories = {annotation["id"]: annotation["category_id"] for annotation in fact["annotations"]}
        for index, texts in sorted(fact["sentences"][variant].items()):
            image_id = fact["image"]["id"]
            ann_id = _annotation_id(image_id, index)
            ids = list(range(sent_id, sent_id + len(texts)))
            sent_id += len(texts)
            refs.append(
                {
                    "ref_id": len(refs),
                    "ann_id": ann_id,
                    "category_id": categories[ann_id],
                    "image_id": image_id,
                    "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg",
                    "split": UMD_SPLITS[job.split] if variant == "refcocog" else job.split,
                    "sentences": [_sentence(number, text) for number, text in zip(ids, texts, strict=True)],
                    "sent_ids": ids,
                }
            )
    return refs


def _sentence(sent_id: int, text: str) -> dict:
    return {"tokens": text.split(), "raw": text, "sent_id": sent_id, "sent": text}


# -------------------------------------------------------------------------------------------------------------- polygons
def polygons(mask: ndarray) -> list[list[float]]:
    """Outlines along pixel edges, [x0, y0, x1, y1, ...] each, whose union is the (H, W) mask.

    A stack of rows, one run of pixels each, becomes one polygon; where runs part or meet a new one begins, so that
    holes need no special case.
    """
    finished: list[list[tuple[int, Run]]] = []
    stacks: list[list[tuple[int, Run]]] = []
    for y, row in enumerate(mask):
        runs = _runs(row)
        links = [[run for run in runs if _touch(stack[-1][1], run)] for stack in stacks]
        parents = {run: sum(run in link for link in links) for run in runs}
        kept = []
        for stack, link in zip(stacks, links, strict=True):
            if len(link) == 1 and parents[link[0]] == 1:
                stack.append((y, link[0]))
                kept.append(stack)
            else:
                finished.append(stack)
        continued = {stack[-1][1] for stack in kept}
        stacks = kept + [[(y, run)] for run in runs if run not in continued]
    return [_outline(stack) for stack in finished + stacks]


def _runs(row: ndarray) -> list[Run]:
    """Half-open column ranges of the row's set pixels."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], row.astype(np.int8), [0]))))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _touch(one: Run, two: Run) -> bool:
    return one[0] < two[1] and two[0] < one[1]


def _outline(stack: list[tuple[int, Run]]) -> list[float]:
    """Down the left side, up the right side, without repeated or collinear points."""
    left = [(run[0], y + step) for y, run in stack for step in (0, 1)]
    right = [(run[1], y + step) for y, run in stack for step in (0, 1)]
    points = left + right[::-1]
    corners = []
    for before, point, after in zip(points[-1:] + points[:-1], points, points[1:] + points[:1], strict=True):
        straight = before[0] == point[0] == after[0] or before[1] == point[1] == after[1]
        if not straight:
            corners.append(point)
    return [float(value) for point in corners for value in point]
