"""From the server to the sample: paper scale's own stages, on archives in the real formats and released weights.

A scale of the test's own has paper scale's sources (download, released) and small sizes; the commands are those of the
workflows.
"""

import contextlib
import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fixtures.parity.narrow import make_spec, write_checkpoint
from flaky_server import Answer, FlakyServer, running
from forked import wait_for
from real_archives import ade_files, coco_files, labeled_mat, refcoco_files, smooth, splits_mat, sync_files, write_zip
from test_import_weights import Released, stored, with_vae
from vpd.cli import main
from vpd.config.params import load_params
from vpd.config.paths import Paths
from vpd.datasets import build_dataset
from vpd.datasets.manifest import located
from vpd.evaluation.results import read_metrics
from vpd.utils.files import exclusive, read_json
from vpd.utils.fingerprint import Fingerprint, write_manifest

ROOT = Path(__file__).parent.parent
SPLITS = {581857: "train", 581858: "train", 9: "val", 10: "testA", 11: "testB"}
LABELS = {f"training/ADE_train_{k:08d}": np.tri(64, 88, dtype=np.uint8) * k for k in (1, 2)}
LABELS["validation/ADE_val_00000001"] = np.tri(64, 88, dtype=np.uint8) * 3
SYNC = {"kitchen_0028b": [45, 46], "nyu_office_0": [0]}
DATASETS = {
    "ade20k": (["ade20k"], {"training": 2, "validation": 1}),
    "nyuv2": (["nyuv2-labeled", "nyuv2-sync"], {"train": 3, "test": 2}),
    "refcoco": (["refcoco", "refcoco+", "refcocog", "coco"], {"refcoco/val": 4, "refcoco+/val": 4, "refcocog/val": 4}),
}


def archives(folder: Path) -> dict[str, dict[str, tuple[str, Path]]]:
    """Entry -> role -> (kind, archive) in the published formats."""
    folder.mkdir()
    images = np.stack([smooth(k, 480, 640) for k in range(3)])
    depths = np.stack([np.full((480, 640), 1.5 + k, np.float32) for k in range(3)])
    listed = [f"/{scene}/rgb_{n:05d}.jpg /{scene}/sync_depth_{n:05d}.png" for scene, ns in SYNC.items() for n in ns]
    (train_list := folder / "train_list.txt").write_text("\n".join(listed) + "\n")
    made = {
        "ade20k": {"archive": write_zip(folder / "ade.zip", ade_files(LABELS))},
        "nyuv2-labeled": {
            "labeled": labeled_mat(folder / "labeled.mat", images, depths, ["kitchen", "bedroom", "kitchen"]),
            "splits": splits_mat(folder / "splits.mat", [1, 3]),
        },
        "nyuv2-sync": {"archive": write_zip(folder / "sync.zip", sync_files(SYNC, 480, 640)), "list": train_list},
        "coco": {"archive": write_zip(folder / "train2014.zip", coco_files(list(SPLITS)))},
    }
    for variant, author in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")):
        made[variant] = {"archive": write_zip(folder / f"{variant}.zip", refcoco_files(variant, SPLITS, [author]))}
    return made


def catalogue(server: FlakyServer, made: dict) -> dict:
    """A sources.yaml for the archives; each comes in two pieces, because the first connection breaks."""
    entries = {}
    for entry, files in made.items():
        kind = entry if entry.startswith("nyuv2") or entry in ("coco", "ade20k") else "refcoco"
        entries[entry] = {"title": entry, "licence": "free", "prepare": kind, "prepared": 1000, "files": {}}
        for role, path in files.items():
            body = path.read_bytes()
            whole = Answer(body, headers={"ETag": '"1"'})
            url = server.says(f"/{path.name}", Answer(body, headers={"ETag": '"1"'}, drop=len(body) // 2), whole)
            digest = hashlib.sha256(body).hexdigest()
            entries[entry]["files"][role] = {
                "name": path.name, "urls": [server.url("/gone"), url], "size": len(body), "digests": {"sha256": digest}
            }  # fmt: skip
    licences = {"free": {"name": "Free", "terms": "Everything is allowed.", "text": "https://example.org/free"}}
    return {"licences": licences, "entries": entries}


def tiny_scale(folder: Path, **more) -> Path:
    """The project's params.yaml with a scale ``tiny``: smoke, but with the datasets to be fetched, and ``more``."""
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    datasets = {
        name: {"format": name, "source": "download", "path": str(folder / "downloads" / name)}
        | {"download": entries, "expect": counts}
        for name, (entries, counts) in DATASETS.items()
    }
    smoke = document["scales"]["smoke"]
    document["scales"]["tiny"] = {**smoke, "datasets": smoke["datasets"] | datasets, **more}
    document["scale"] = "tiny"
    (folder / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return folder / "params.yaml"


class Place:
    """A project folder with a server beside it."""

    def __init__(self, folder: Path, server: FlakyServer, **scale) -> None:
        self.folder, self.server, self.paths = folder, server, Paths("tiny", folder)
        self.params = tiny_scale(folder, **scale)
        self.sources = folder / "sources.yaml"

    def run(self, *arguments: str | Path) -> int:
        with contextlib.chdir(self.folder):
            return main([str(argument) for argument in arguments])

    def fetch(self, name: str, *options: str) -> int:
        return self.run("fetch", name, "--sources", self.sources, *options)

    def data(self, name: str) -> int:
        return self.run("data", name)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # pauses between attempts
    with running() as server:
        place = Place(tmp_path, server)
        place.sources.write_text(yaml.safe_dump(catalogue(server, archives(tmp_path / "served"))))
        monkeypatch.setenv("VPD_SOURCES", str(place.sources))
        yield place


# --------------------------------------------------------------------------------------------------------------- datasets
@pytest.mark.parametrize("name", DATASETS)
def test_data_comes_from_the_server_to_the_sample_and_is_asked_for_once(place, name, capsys):
    assert place.fetch(name) == 2
    assert "--accept-licence" in capsys.readouterr().err
    assert place.fetch(name, "--accept-licence") == 0
    assert place.data(name) == 0
    asked = len(place.server.requests)
    assert asked >= 3 * len(DATASETS[name][0])  # a dead mirror, a broken connection, the rest
    assert any("range" in request.headers for request in place.server.requests)

    out = place.paths.dataset(name)
    manifest = read_json(out / "manifest.json")
    assert {key: manifest["counts"][key] for key in DATASETS[name][1]} == DATASETS[name][1]
    assert sorted(path.name for path in out.iterdir()) == ["fingerprint.json", "manifest.json", "preview.png"]
    assert located(out).samefile(place.folder / "downloads" / name)

    params = load_params(place.params)
    spec = next(spec for spec in map(params.resolve, params.experiments) if spec.dataset == name)
    dataset = build_dataset(spec, out, "val")
    sample = dataset.sample(0)
    assert sample["image"].shape[0] == 3
    if name == "nyuv2":
        border = sample["image"][:, 0, 0].tolist()
        assert border == pytest.approx([-1.0] * 3, abs=0.05)  # black, through JPEG
        assert sample["depth"].unique().tolist() == pytest.approx([1.5])

    assert (place.fetch(name), place.data(name)) == (0, 0)
    assert len(place.server.requests) == asked


def test_the_data_stage_fetches_by_itself_and_stops_if_the_counts_are_not_the_papers(place, capsys):
    assert place.data("ade20k") == 2
    assert "--accept-licence" in capsys.readouterr().err
    assert place.fetch("ade20k", "--accept-licence", "--out", str(place.folder / "elsewhere")) == 0
    place.params.write_text(place.params.read_text().replace("training: 2\n", "training: 20210\n"))
    assert place.data("ade20k") == 2
    assert "has 2 training, expected 20210" in capsys.readouterr().err
    assert not (place.paths.dataset("ade20k") / "manifest.json").exists()


# ------------------------------------------------------------------------------------------------------ released weights
@pytest.fixture
def released(tmp_path, monkeypatch):
    """A place whose server has RefCOCO's released weights at the fixtures' width, and lost those of segmentation."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    wide = {"unet": (32, 64, 128, 128), "vae": (32, 64, 128, 128), "layers": 2, "heads": 8, "groups": 32}
    (tmp_path / "plain").mkdir()
    first = write_checkpoint(tmp_path / "plain", **wide, length=77)
    spec = make_spec("referring", head={"channels": 64}, prompt={"length": 10})
    weights = {
        name: {"path": str(tmp_path / f"downloads/released/{file}"), "download": entry}
        for name, file, entry in (("refcoco-full", "refer.pth", "vpd-refcoco"), ("seg-full", "seg.pth", "vpd-seg"))
    }
    own = spec.model_dump(mode="json", include={"data", "evaluation"}) | {"training": {"workers": 0}}
    own["methods"] = {"vpd": spec.model_dump(mode="json", include={"model"})}
    scale = {"released": weights, "tasks": {"referring": own, "segmentation": {}, "depth": {}}}
    with running() as server:
        place = Place(tmp_path, server, **scale)
        place.checkpoint = with_vae("refer", first, place.paths.checkpoint("sd-1-5"))
        write_manifest(place.checkpoint, Fingerprint("", ""), {})
        (tmp_path / "work").mkdir()
        state = Released("refer", tmp_path / "work", place.checkpoint).state
        torch.save(stored("refer", state), tmp_path / "refer.pth")
        body = (tmp_path / "refer.pth").read_bytes()
        made = catalogue(server, archives(tmp_path / "served"))
        for entry, file, url in (
            ("vpd-refcoco", "refer.pth", server.says("/refer.pth", Answer(body))),
            ("vpd-seg", "seg.pth", server.url("/expired")),
        ):
            made["entries"][entry] = {"title": entry, "licence": "free", "prepare": "keep", "prepared": 1}
            made["entries"][entry]["files"] = {"weights": {"name": file, "urls": [url]}}
        place.sources.write_text(yaml.safe_dump(made))
        monkeypatch.setenv("VPD_SOURCES", str(place.sources))
        for name in ("refcoco", "ade20k"):  # the stage is keyed by the datasets of all its files
            assert place.fetch(name, "--accept-licence") == 0
            assert place.data(name) == 0
        yield place


def test_released_weights_are_fetched_imported_and_measured_and_a_dead_link_is_reported(released, capsys):
    assert released.run("released") == 0
    said = capsys.readouterr()
    assert "released weights of seg-full: " in said.err
    assert "not measured, because the weights are not available: seg-full" in said.out

    folder = released.paths.released
    index = read_json(folder / "index.json")["released"]
    assert index["refcoco-full"]["vae_difference"] < 1e-6
    assert "404" in index["seg-full"]["missing"]
    assert 0 <= read_metrics(folder / "metrics/refcoco-full.json")[0]["metrics"]["oiou"] <= 100
    assert (folder / "panels/refcoco-full/predictions.png").is_file()
    assert not (folder / "metrics/seg-full.json").exists()

    # The other link dies, too: what was measured stays as long as its settings do.
    others = {"manifest.json", "fingerprint.json"}  # the latter says that the file is gone
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name not in others}
    shutil.rmtree(released.folder / "downloads/released")
    for path in (released.folder / "downloads").rglob("refer.pth*"):  # the archive
        path.unlink()
    released.server.says("/refer.pth", Answer(status=404))
    (folder / "index.json").unlink()  # as Snakemake does before it runs the stage
    assert released.run("released") == 0
    assert "released weights of refcoco-full: " in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    released.params.write_text(released.params.read_text().replace("workers: 0", "workers: 1"))
    assert released.run("released") == 0
    assert "404" in read_json(folder / "index.json")["released"]["refcoco-full"]["missing"]
    assert not list(folder.glob("*/refcoco-full*"))


def test_imported_weights_are_evaluated_like_a_run_of_ones_own(released, capsys):
    """``import-weights``, which waits for a training of the same experiment, and ``evaluate`` give what the stage gives."""
    assert released.fetch("vpd-refcoco", "--accept-licence") == 0
    with ThreadPoolExecutor() as pool:
        with exclusive(released.paths.runs("refcoco-full")):
            done = pool.submit(released.run, "import-weights", "refcoco-full", "downloads/released/refer.pth")
            wait_for(lambda: "import of refcoco-full: waiting for another process" in capsys.readouterr().err)
            assert not released.paths.history("refcoco-full").exists()
        assert done.result() == 0
    assert released.run("evaluate", "refcoco-full") == 0
    assert read_metrics(released.paths.evaluated("refcoco-full").metrics)[0]["metrics"]["oiou"] >= 0


def test_files_already_on_disk_are_taken_however_they_are_listed(place):
    """Both files of the labelled set, each behind an option of its own; the server is never asked."""
    labeled, splits = (str(place.folder / "served" / name) for name in ("labeled.mat", "splits.mat"))
    given = ("--from-archive", labeled, "--from-archive", splits)
    assert place.fetch("nyuv2-labeled", "--accept-licence", *given) == 0
    assert place.server.requests == []
    assert (place.folder / "downloads/nyuv2/test_list.txt").is_file()
