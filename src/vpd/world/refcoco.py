"""Write RefCOCO, RefCOCO+ and RefCOCOg: one set of images and masks, three sets of sentences."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from vpd.datasets.images import save_jpeg
from vpd.datasets.refcoco import IMAGES
from vpd.utils.files import atomic_path, write_text
from vpd.world.classes import LABELS, THINGS, TOYS
from vpd.world.language import attributes, phrase, positions, referable, relations
from vpd.world.scene import draw_scene
from vpd.world.seeds import LANGUAGE, Job, Rng

FILES = {"refcoco": "refs(unc).p", "refcoco+": "refs(unc).p", "refcocog": "refs(umd).p"}
MOST_SENTENCES = {"refcoco": 3, "refcoco+": 3, "refcocog": 2}
MOST_THINGS = 100  # more things than any scene has; ids of annotations are made of it
LEAST_SHARE = 0.05
"""Of the image that a referred thing covers; the games behind the real sets asked for things of that size too."""
UMD_SPLITS = {"train": "train", "val": "val", "testA": "test", "testB": "test"}
Run = tuple[int, int]  # half-open range of columns


def draw_refcoco(job: Job) -> dict[str, Any]:
    """Write the image; return its COCO entries, and per variant the sentences of each thing."""
    scene, (width, height), image_id = draw_scene(job.seed, *job.size), job.size, job.number + 1
    name = f"COCO_train2014_{image_id:012d}.jpg"
    save_jpeg(job.root / IMAGES / name, scene.picture.image)
    image = {"id": image_id, "file_name": name, "width": width, "height": height, "license": 0}
    annotations = [
        {
            "id": image_id * MOST_THINGS + instance.index + 1,
            "image_id": image_id,
            "category_id": LABELS[instance.name],
            "segmentation": polygons(scene.mask(instance)),
            "bbox": [float(value) for value in instance.box],
            "area": float(instance.area),
            "iscrowd": 0,
        }
        for instance in scene.instances
    ]
    rng = Rng(scene.seed, LANGUAGE)
    sentences: dict[str, dict[int, list[str]]] = {variant: {} for variant in FILES}
    for target in referable(scene):
        toy = target.name in TOYS
        # People are the real test A and other things its test B: toys and furniture stand in for them.
        other_test = (job.split == "testA" and not toy) or (job.split == "testB" and toy)
        if target.area < LEAST_SHARE * width * height or other_test:
            continue
        looks = attributes(target, scene.instances)
        named = [one for one in looks if one.head.name]
        for variant, most in MOST_SENTENCES.items():  # RefCOCO+ forbids places, RefCOCOg asks for whole sentences
            if variant == "refcoco+":
                expressions = looks
            else:
                expressions = (positions if variant == "refcoco" else relations)(target, scene.instances) + named
            chosen, long = rng.shuffled(expressions)[: rng.count(1, most)], variant == "refcocog"
            if chosen:
                wordings = dict.fromkeys(phrase(rng, one, scene.room.kind, long) for one in chosen)
                sentences[variant][target.index] = list(wordings)
    return {"image": image, "annotations": annotations, "sentences": sentences}


def finish_refcoco(root: Path, jobs: list[Job], facts: list[dict[str, Any]]) -> None:
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
            # Equal texts must not be one object, or the pickle's bytes would depend on which texts share one.
            refs = json.loads(json.dumps(_refs(variant, jobs, facts)))
            path.write_bytes(pickle.dumps(refs, protocol=2))  # as the real files, which Python 2 wrote


def _refs(variant: str, jobs: list[Job], facts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    refs: list[dict[str, Any]] = []
    sent_id = 0
    for job, fact in zip(jobs, facts, strict=True):
        annotations, image_id = {entry["id"]: entry for entry in fact["annotations"]}, fact["image"]["id"]
        for index, texts in sorted(fact["sentences"][variant].items()):
            annotation = annotations[image_id * MOST_THINGS + index + 1]
            ids = range(sent_id, sent_id := sent_id + len(texts))
            said = [
                {"tokens": text.split(), "raw": text, "sent_id": n, "sent": text}
                for n, text in zip(ids, texts, strict=True)
            ]
            refs.append(
                {
                    "ref_id": len(refs),
                    "ann_id": annotation["id"],
                    "category_id": annotation["category_id"],
                    "image_id": image_id,
                    "file_name": f"COCO_train2014_{image_id:012d}_{annotation['id']}.jpg",
                    "split": UMD_SPLITS[job.split] if variant == "refcocog" else job.split,
                    "sentences": said,
                    "sent_ids": list(ids),
                }
            )
    return refs


# ------------------------------------------------------------------------------------------------------------- polygons
def polygons(mask: ndarray) -> list[list[float]]:
    """Outline a mask, as [x0, y0, x1, y1, ...] along pixel edges, so that COCO's rasteriser gives exactly the same mask.

    A stack of rows, one run of pixels each, becomes one polygon; where runs part or meet a new one begins, so that holes
    need no special case.
    """
    finished: list[list[tuple[int, Run]]] = []
    stacks: list[list[tuple[int, Run]]] = []
    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], row.astype(np.int8), [0]))))
        runs: list[Run] = [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
        ends = [stack[-1][1] for stack in stacks]
        links = [[run for run in runs if run[0] < end[1] and end[0] < run[1]] for end in ends]
        parents = {run: sum(run in link for link in links) for run in runs}
        growing = []
        for stack, link in zip(stacks, links, strict=True):
            if len(link) == 1 and parents[link[0]] == 1:
                stack.append((y, link[0]))
                growing.append(stack)
            else:
                finished.append(stack)
        continued = {stack[-1][1] for stack in growing}
        stacks = growing + [[(y, run)] for run in runs if run not in continued]
    return [_outline(stack) for stack in finished + stacks]


def _outline(stack: list[tuple[int, Run]]) -> list[float]:
    """Down the left side, up the right side, without repeated or collinear points."""
    left, right = ([(run[side], y + step) for y, run in stack for step in (0, 1)] for side in (0, 1))
    points = left + right[::-1]
    corners = []
    for before, point, after in zip(points[-1:] + points[:-1], points, points[1:] + points[:1], strict=True):
        if not (before[0] == point[0] == after[0] or before[1] == point[1] == after[1]):
            corners.append(point)
    return [float(value) for point in corners for value in point]
