"""Whatever the project reads may be damaged in any way: its reader names it in one sentence, with place and cure."""

import contextlib
import copy
import ctypes
import io
import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from forked import impatient
from vpd.config.claims import load_claims
from vpd.config.params import load_params
from vpd.config.paths import evaluated
from vpd.config.schema import NetworkSpec, load_spec
from vpd.datasets import ade20k, captions, nyuv2, objects, refcoco
from vpd.datasets.images import read_depth, read_image, read_labels
from vpd.datasets.manifest import located
from vpd.download.sources import acceptance, load_sources
from vpd.evaluation.results import is_evaluated, read_metrics, read_provenance
from vpd.planning.costs import read_timing
from vpd.planning.plan import read_graph
from vpd.pretrained.tensors import read_tensors
from vpd.report.cells import read_cells
from vpd.report.collect import read_costs, read_curves
from vpd.report.evidence import read_evidence
from vpd.report.provenance import backbones
from vpd.report.report import Absent, Weights
from vpd.utils.digests import digests
from vpd.utils.errors import UserError
from vpd.utils.fingerprint import Fingerprint, is_finished, read_fingerprint, read_manifest
from vpd.utils.tensors import read_safetensors
from vpd.utils.validation import read_as

ROOT = Path(__file__).parent.parent

RAW: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "no UTF-8": lambda content: b"\xff\xfe\x00\x80" + content[:50],
    "UTF-16": lambda content: content.decode("latin-1").encode("utf-16"),
    "binary": lambda content: bytes(range(256)),
    "zeros": lambda content: bytes(200),
    "brackets": lambda content: b"[" * 100_000,
    "braces": lambda content: b'{"a":' * 100_000,
    "dashes": lambda content: b"- " * 100_000,
    "null": lambda content: b"null",
    "a list": lambda content: b"[]",
    "a list of nothing": lambda content: b"[null]",
    "a number": lambda content: b"3",
    "6000 digits": lambda content: b"9" * 6000,
    "NaN": lambda content: b'{"a": NaN}',
    "text": lambda content: b'"x"',
    "a half character": lambda content: b'{"a": "\\ud800"}',
    "no keys": lambda content: b"{}",
    "another key": lambda content: b'{"a": 1}',
    "a web page": lambda content: b"<!DOCTYPE html><html><body>quota exceeded</body></html>",
    "a Git LFS pointer": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n",
    "a broken zip": lambda content: b"PK\x03\x04" + content[:30],
}
PLACED: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "folder": Path.mkdir,
    "link to itself": lambda path: path.symlink_to(path),
    "pipe": os.mkfifo,
    "unreadable": lambda path: path.touch(mode=0),
}
GONE = object()
OTHERS = (GONE, None, "x", "\x1b[31m", -1, 10**30, 1e300, True, [], {}, [[1]], {"a": 1})


@contextlib.contextmanager
def mortal() -> Iterator[None]:
    """Without root's right to read everything, for the block."""
    libc, header = ctypes.CDLL(None), struct.pack("=II", 0x20080522, 0)
    before = ctypes.create_string_buffer(24)
    libc.capget(header, before)
    effective, *others = struct.unpack("=6I", before.raw)
    libc.capset(header, struct.pack("=6I", effective & ~0b110, *others))
    try:
        yield
    finally:
        libc.capset(header, before)


def sentence_of(read: Callable[[Path], object], path: Path, damage: str) -> str | None:
    """The UserError of a reader, whose form is checked, or None if it reads; anything else it raises is named with the damage."""
    try:
        with impatient(), mortal():
            read(path)
    except UserError as error:
        said = str(error)
        assert path.name in said or path.parent.name in said, (damage, said)
        assert ";" in said, (damage, said)
        assert len(said) < 1000, (damage, said)
        assert said.isprintable(), (damage, said)
        assert "free some space" not in said, (damage, said)
        return said
    except BaseException as error:
        raise AssertionError(f"{damage}: {error!r}") from error
    return None


# ------------------------------------------------------------------------------------------------------------- the readers
DIGEST = "0123456789abcdef"
RECORDED = {"settings": DIGEST, "code": DIGEST, "inputs": {"data": DIGEST}}
MANIFEST = {"schema": 1, "files": {"a": DIGEST}, "steps": 3, "milestones": {"final": 3}, "place": "."}
METRICS = {"final": {"step": {"seed0": 3}, "miou_ss": {"mean": 1.5, "seed0": 1.5}}}
MADE = {
    "spec": DIGEST,
    "metrics": DIGEST,
    "shown": {"predictions.png": DIGEST},
    "fingerprint": RECORDED,
    "runs": {
        "seed0": {
            "fingerprint": RECORDED,
            "files": {"final.safetensors": DIGEST},
            "timing": {"started": 1.5, "ended": 3.0, "seconds": 1.5, "commit": "abc"},
        }
    },
}
COSTS = {"seg-full": {"figures": {"GMACs": 1.5}}}
MEASURES = {"fresh": {"probe": 0.2}, "trained": {"probe": 0.6}}
BACKBONE = {
    "source": "pretrained", "objective": "contrast", "parameters": {"vision": 1}, "images_seen": 6400,
    "phases": {"contrast": {"loss": {"first": 2.5, "last": 0.75}, "measures": MEASURES}},
}  # fmt: skip
WORKFLOW = {"stages": {
    "data": {"foreach": ["a", "b"], "do": {"cmd": "x", "outs": [{"data/${item}": {"persist": True}}]}},
    "train": {"cmd": "x", "deps": ["data/a"], "outs": ["runs"]},
}}  # fmt: skip
SQUARE = [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0]]
INSTANCES = {
    "images": [{"id": 7, "file_name": "COCO_train2014_7.jpg", "height": 8, "width": 8}],
    "annotations": [{"id": 5, "segmentation": SQUARE}],
}
REFERENCE = {
    "ref_id": 1, "ann_id": 5, "image_id": 7, "split": "train", "sentences": [{"sent_id": 3, "sent": "the square"}],
}  # fmt: skip
WEIGHTS = {
    "file": "a.pth", "sha256": DIGEST, "repo": "a/b", "revision": DIGEST, "parameters": 5, "vae_difference": 0.0,
    "class_embeddings": {"mean": 0.9, "worst": 0.8, "worst_class": "wall", "in_order": 3, "by_class": {"wall": 0.8}},
}  # fmt: skip
ACCEPTED = {"key": {"name": "MIT", "text": "https://a.org", "accepted": "2026-01-01"}}
CELLS = "table,row,column,value,sd,provenance\ntable1,a,b,1.5,,measured\n"
SMALL = {"library": "timm", "architecture": "vit_base_patch16_224", "options": {}}


@cache
def _parameters():
    return load_params(ROOT / "params.yaml")


JSONS: dict[str, tuple[Callable[[Path], object], object]] = {
    "specs/seg-full.json": (load_spec, None),
    "manifest.json": (lambda path: read_manifest(path.parent), MANIFEST),
    "run/manifest.json": (lambda path: read_manifest(path.parent, "steps", "milestones"), MANIFEST),
    "pretraining/manifest.json": (lambda path: read_manifest(path.parent, "milestones"), MANIFEST),
    "dataset/manifest.json": (lambda path: located(path.parent), MANIFEST),
    "fingerprint.json": (lambda path: read_fingerprint(path.parent), RECORDED),
    "metrics.json": (read_metrics, METRICS),
    "provenance.json": (read_provenance, MADE),
    "timing.json": (read_timing, {"stage": "train", "name": "a", "seconds": 1.5, "peak_mb": 80}),
    "costs.json": (read_costs, COSTS),
    "backbones/swin-l.json": (lambda path: backbones(_parameters(), path.parent), BACKBONE),
    "network.json": (partial(read_as, NetworkSpec), SMALL),
    "captions.json": (lambda path: captions.entries(path.parent), [{"file": "a", "caption": "b"}]),
    "objects.json": (
        lambda path: objects.entries(path.parent),
        [{"file": "a", "mask": "b", "classes": ["c"], "instances": [{"id": 1, "class": "c"}]}],
    ),
    "refcoco/instances.json": (lambda path: refcoco.references(path.parent.parent, "refcoco"), INSTANCES),
    "released/index.json": (
        partial(read_as, dict[str, dict[str, Absent | Weights]]),
        {"released": {"a": WEIGHTS}, "public": {}},
    ),
    "licences.json": (lambda path: acceptance("key", path.parent), ACCEPTED),
}
YAMLS: dict[str, tuple[Callable[[Path], object], object]] = {
    "dvc.yaml": (lambda path: read_graph(_parameters(), path), WORKFLOW),
    "params.yaml": (lambda path: load_params(path).check_all(), None),
    "sources.yaml": (load_sources, None),
    "claims.yaml": (load_claims, None),
}
TEXTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "history.csv": (lambda path: read_curves(path, ("seed", "step", "loss")), "seed,step,loss\n0,1,1.5\n"),
    "cells.csv": (read_cells, CELLS),
    "evidence.csv": (lambda path: read_evidence(path, ["a"]), "experiment,milestone,metric,seed,value\na,final,x,0,1\n"),
    "ADEChallengeData2016/objectInfo150.txt": (
        lambda path: ade20k.class_names(path.parent.parent), "Idx\tRatio\tName\n1\t0.5\twall\n",
    ),
    "train_list.txt": (lambda path: nyuv2.frames(path.parent, "train"), "kitchen/a.jpg kitchen/b.png 518.8\n"),
}  # fmt: skip
ABSENT_IS_FINE = ("history.csv", "evidence.csv", "swin-l.json", "licences.json", "dataset/manifest.json")
"""What need not be there."""


@pytest.fixture
def put(tmp_path):
    """A function that writes a file with what its readers need beside it."""

    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if path.name == "instances.json":
            path.with_name("refs(unc).p").write_bytes(pickle.dumps([REFERENCE]))
        return path

    return write


def valid(name: str) -> object:
    """The undamaged value of a file."""
    if name == "specs/seg-full.json":
        return _parameters().resolve("seg-full").model_dump(mode="json")
    places = {"params.yaml": ROOT, "sources.yaml": ROOT / "src/vpd/download", "claims.yaml": ROOT / "src/vpd/config"}
    if name in places:
        import yaml

        return yaml.load((places[name] / name).read_text(), Loader=yaml.CSafeLoader)
    return (JSONS | YAMLS)[name][1]


def damaged(read, path: Path, content: bytes, allowed: tuple[str, ...] = ()) -> None:
    """Each damage of all bytes, or of the file itself, is a sentence."""
    for damage, change in RAW.items():
        path.write_bytes(change(content))
        assert sentence_of(read, path, damage) or damage in allowed, damage
    for damage, place in PLACED.items():
        path.unlink()
        place(path)
        optional = damage in ("missing", "link to itself") and str(path).endswith(ABSENT_IS_FINE)
        optional |= str(path).endswith(("history.csv", "evidence.csv", "swin-l.json")) and damage in ("folder", "pipe")
        assert sentence_of(read, path, damage) or optional, damage
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        path.touch()


@pytest.mark.parametrize("name", [*JSONS, *YAMLS])
def test_damaged_bytes_are_a_sentence(put, name):
    read, content = (JSONS | YAMLS)[name][0], json.dumps(valid(name)).encode()
    path = put(name, content)
    assert sentence_of(read, path, "none") is None
    path.write_bytes(b"\xef\xbb\xbf" + content)  # a byte-order mark
    assert sentence_of(read, path, "none") is None
    empty = {"a list"} if name in ("captions.json", "objects.json", "claims.yaml") else set()
    empty |= (
        {"no keys", "another key"}
        if name in ("fingerprint.json", "dataset/manifest.json", "backbones/swin-l.json")
        else set()
    )
    empty |= {"no keys"} if name in ("licences.json", "costs.json", "released/index.json") else set()
    damaged(read, path, content, tuple(empty))


@pytest.mark.parametrize("name", TEXTS)
def test_damaged_text_is_a_sentence(put, name):
    read, text = TEXTS[name]
    path = put(name, text.encode())
    assert sentence_of(read, path, "none") is None
    for damage in ("no UTF-8", "UTF-16", "binary", "brackets", "a web page"):
        path.write_bytes(RAW[damage](text.encode()))
        said = sentence_of(read, path, damage)
        assert said or (name.endswith(".txt") and damage in ("brackets", "a web page"))
    for damage in PLACED:
        path.unlink()
        PLACED[damage](path)
        assert sentence_of(read, path, damage) or name in ABSENT_IS_FINE
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        path.touch()


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """Key paths of all values in nested data; of a list only those of its first value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


def replaced(value: object, path: tuple, other: object) -> object:
    """A copy with one value replaced, or gone."""
    changed = copy.deepcopy(value)
    at = changed
    for key in path[:-1]:
        at = at[key]
    if other is GONE:
        del at[path[-1]]
    else:
        at[path[-1]] = other
    return changed


@pytest.mark.parametrize("name", [*JSONS, "dvc.yaml"])
def test_a_value_of_another_kind_is_a_sentence_or_means_nothing(put, name):
    read, value = (JSONS | YAMLS)[name][0], valid(name)
    path, refused = put(name, b"{}"), 0
    for place in places(value):
        for other in OTHERS:
            path.write_text(json.dumps(replaced(value, place, other)))
            refused += sentence_of(read, path, f"{place} = {other!r}") is not None
    assert refused > 5


# --------------------------------------------------------------------------------------------------------- YAML by itself
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("? [a]\n: 1\n", r"a list or mapping stands where a key belongs \(line 1 and after\)"),
        ("? {a: 1}\n: 1\n", "a list or mapping stands where a key belongs"),
        ("a: 2020-13-45\n", "month must be in 1..12"),
        ("a: 2020-02-30 12:00:00\n", "day is out of range"),
        (f"a: {'9' * 6000}\n", "Exceeds the limit"),
        ("a: !!int x\n", "invalid literal"),
        ("a: !!python/object/apply:os.system [id]\n", "could not determine a constructor"),
        ("a: &a [*a]\n", r"\*a stands for itself \(line 1\)"),
        ("a: *b\n", "undefined alias"),
        (BOMB, "nested too deeply or too large"),
        ("".join(f"{' ' * n}a:\n" for n in range(150)), "nested too deeply"),
        ("- " * 50_000, "nested too deeply"),
        ("a: [1\n", "not valid YAML"),
        ("a: '\\x00'\n\0", "not valid YAML"),
        ("a: 1\na: 2\n", "the key 'a' stands twice"),
        ("%YAML 9.0\n---\na: 1\n", "not valid YAML"),
        ("<<: [1]\n", "not valid YAML"),
    ],
)
@pytest.mark.parametrize("read", [load_params, load_sources, load_claims, YAMLS["dvc.yaml"][0]])
def test_yaml_of_every_bad_kind_is_a_sentence(put, read, text, said):
    with pytest.raises(UserError, match=said), impatient():
        read(put("a.yaml", text.encode()))


def test_a_found_value_is_not_repeated_in_full(put):
    document = valid("params.yaml")
    document["scale"] = ["x" * 1000] * 1000
    assert len(sentence_of(load_params, put("params.yaml", json.dumps(document).encode()), "a long list")) < 800


# ----------------------------------------------------------------------------------------------------------------- images
def png(width: int, height: int, mode: int = 8, kind: int = 0, data: bytes = b"") -> bytes:
    """A PNG that claims a size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, mode, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


IMAGES = {
    "bomb": png(60_000, 60_000),
    "line": png(2**31 - 1, 1),
    "nothing": png(0, 5),
    "no pixels": png(5, 5),
    "too many bytes": png(2, 2, data=bytes(10_000)),
    "BMP bomb": b"BM" + struct.pack("<IHHIIiiHHII", 54, 0, 0, 54, 40, 10**9, 10**9, 1, 24, 0, 0) + bytes(16),
    "GIF bomb": b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(20),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}


@pytest.mark.parametrize("read", [read_image, partial(read_labels, classes=3), read_depth])
def test_what_is_no_image_is_a_sentence(put, read):
    whole = io.BytesIO()
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(whole, "PNG")
    path = put("a.png", whole.getvalue())
    for damage, content in IMAGES.items():
        path.write_bytes(content)
        assert sentence_of(read, path, damage) or damage == "too many bytes"
    damaged(read, path, whole.getvalue())


# ---------------------------------------------------------------------------------------------------------------- tensors
def _header(entries: dict) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TENSORS = {
    "a header without end": struct.pack("<Q", 2**63) + b"{}",
    "a header of text": struct.pack("<Q", 4) + b"abcd",
    "another type": _header({"a": ENTRY | {"dtype": "F33"}}) + bytes(8),
    "offsets outside": _header({"a": ENTRY | {"data_offsets": [0, 80]}}) + bytes(8),
    "offsets reversed": _header({"a": ENTRY | {"data_offsets": [8, 0]}}) + bytes(8),
    "a shape that does not fit": _header({"a": ENTRY | {"shape": [3]}}) + bytes(8),
    "a huge shape": _header({"a": ENTRY | {"shape": [2**62, 2**62]}}) + bytes(8),
    "a negative shape": _header({"a": ENTRY | {"shape": [-2]}}) + bytes(8),
    "two of one place": _header({"a": ENTRY, "b": ENTRY}) + bytes(8),
    "brackets": _header({}) + b"[" * 1000,
}


@pytest.mark.parametrize(("read", "name"), [(read_safetensors, "a.safetensors"), (read_tensors, "a.safetensors"),
                                            (read_tensors, "a.pth")])  # fmt: skip
def test_what_is_no_weights_is_a_sentence(put, tmp_path, read, name):
    path = tmp_path / name
    save_file({"a": torch.zeros(3)}, path) if name.endswith("safetensors") else torch.save({"a": torch.zeros(3)}, path)
    content = path.read_bytes()
    assert sentence_of(read, path, "none") is None
    for damage, bytes_ in TENSORS.items():
        path.write_bytes(bytes_)
        assert sentence_of(read, path, damage), damage
    damaged(read, path, content)


def test_a_pipe_among_hashed_files_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "a")
    with impatient(), pytest.raises(UserError, match="a is a folder or a device, not a file"):
        digests(tmp_path, ["a"])


def test_damage_of_what_is_only_compared_means_not_finished(put, tmp_path):
    for damage, change in RAW.items():
        put("manifest.json", change(json.dumps(MANIFEST).encode()))
        put("fingerprint.json", change(json.dumps(RECORDED).encode()))
        assert not is_finished(tmp_path, Fingerprint(DIGEST, DIGEST)), damage
        for name in ("metrics/a.json", "headlines/a.json", "panels/a/predictions.png"):
            put(name, b"{}")
        put("provenance/a.json", change(json.dumps(MADE).encode()))
        assert not is_evaluated(evaluated(tmp_path, "a"), Fingerprint(DIGEST, DIGEST)), damage


# ------------------------------------------------------------------------------------------------- references and instances
def opcodes(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


DEEP = b"N" + b"\x85" * 300_000  # ((((None,),),),)
SHARED = b"N" + b"q\x00h\x00\x86" * 60  # (x, x) of (x, x) of ...: 2**60 hashes
PICKLES = {
    "deep tuples as a key": opcodes(b"}" + DEEP + b"Ns"),
    "shared tuples as a key": opcodes(b"}" + SHARED + b"Ns"),
    "deep tuples in a set": b"\x80\x04\x8f(" + DEEP + b"\x90.",
    "a far memo": opcodes(b"]r\xff\xff\xff\x7f"),
    "a tuple": pickle.dumps((1, 2), 2),
    "a class": pickle.dumps(Path("a")),
    "deep lists": opcodes(b"]" * 100_000 + b"a" * 99_999),
    "numbers": pickle.dumps([1, 2]),
    "a number": pickle.dumps(1),
    "a dictionary": pickle.dumps({"a": 1}),
    "huge number": pickle.dumps([REFERENCE | {"ref_id": 10**5000}]),
    "a string for a number": pickle.dumps([REFERENCE | {"ref_id": "1"}]),
    "no sentence": pickle.dumps([REFERENCE | {"sentences": []}]),
    "sentences of text": pickle.dumps([REFERENCE | {"sentences": "ab"}]),
}


@pytest.mark.parametrize("damage", [*PICKLES, *RAW, *PLACED])
def test_references_in_every_bad_state_are_a_sentence(put, tmp_path, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    path = put("refcoco/refs(unc).p", pickle.dumps([REFERENCE]))
    if damage in PLACED:
        path.unlink()
        PLACED[damage](path)
    else:
        path.write_bytes(PICKLES.get(damage) or RAW[damage](path.read_bytes()))
    if damage != "huge number":
        assert sentence_of(refcoco.load_refs, path, damage) or damage == "a list"


RUNS = {"size": [8, 8], "counts": [8, 8, 48]}
SEGMENTATIONS = {
    "none": [],
    "too many pixels": {"counts": [0, 10**9]},
    "too few": {"counts": [1]},
    "negative": {"counts": [70, -6]},
    "fractions": {"counts": [1.5, 62.5]},
    "no numbers": {"counts": ["a", "b"]},
    "nested": {"counts": [[64]]},
    "beyond all": {"counts": [2**70, 64 - 2**70]},
    "short form of nothing": {"counts": ""},
    "short form of too many": {"counts": "oooooooooooo0"},
    "short form of anything": {"counts": "\0\1ä"},
    "no counts": {"size": [8, 8]},
    "a huge size of its own": {"size": [10**9, 10**9], "counts": "0"},
    "two points": [[1, 1, 2, 2]],
    "an odd number": [[1, 1, 2, 2, 3]],
    "far away": [[0, 0, 1e9, 0, 1e9, 1e9]],
    "further": [[0, 0, 1e300, 0, 5, 1e300]],
    "not a number": [[0, 0, float("nan"), 0, 5, 5]],
    "text": [["a"] * 6],
    "not nested": [0, 0, 1, 1, 2, 2],
    "a million polygons": [SQUARE[0]] * 13_000_000,
}


@pytest.mark.parametrize("damage", SEGMENTATIONS)
def test_a_bad_segmentation_is_a_sentence(tmp_path, damage):
    reference = refcoco.Reference(1, 7, "train", tmp_path / "7.jpg", (8, 8), SEGMENTATIONS[damage], ((3, "square"),))
    with pytest.raises(UserError, match=r"reference 1 \(7\.jpg\) has a bad segmentation: "), impatient():
        refcoco.object_mask(reference)


@pytest.mark.parametrize("size", [0, -8, 10**9, 16385, "x", None, 1.5])
def test_a_size_that_no_image_has_is_refused(put, size):
    changed = {**INSTANCES, "images": [INSTANCES["images"][0] | {"height": size}]}
    path = put("refcoco/instances.json", json.dumps(changed).encode())
    assert "images.0.height" in sentence_of(
        lambda _: refcoco.references(path.parent.parent, "refcoco"), path, str(size)
    )


def test_csv_of_text_in_a_column_of_numbers_is_refused(put):
    path = put("cells.csv", CELLS.replace("1.5", "many").encode())
    assert "has a text in its column 'value'" in sentence_of(read_cells, path, "text")


def test_csv_without_lines_has_columns_of_numbers(put):
    # Shipped weights have no history of a pre-training.
    curves = read_curves(put("history.csv", b"phase,step,loss\n"), ("phase", "step", "loss"))
    assert curves.empty
    assert curves[["step", "loss"]].dtypes.tolist() == ["float64", "float64"]
