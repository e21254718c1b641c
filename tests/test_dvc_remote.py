"""Two clones that share results through git and a DVC remote, a folder or a real SSH server; every command of docs/group.md.

Needs Debian's openssh-server: `make test-cluster` installs it and runs this.
"""

import filecmp
import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient

from ssh_lab import ssh_server
from test_reproduce import ENVIRONMENT, ROOT, changed, copy_of_project, run, stages_run

pytestmark = pytest.mark.cluster

PAGE = (ROOT / "docs/group.md").read_text()
NAMES = ("depth-full", "seg-clip", "seg-fast", "refcocog-fast")
"""Every task, VPD and a baseline: the report and all that it needs in a minute."""
SHARE, SERVER, HAVE = "Share what you have", "A server instead of a folder", "Have what the others have"
CHANGE, CACHE = "Change something and share it", "One cache for all clones on a machine or cluster"
DATASETS, QUEUE = "One copy of the real datasets", "Try several settings at once"
MADE = ("results/smoke", "data/smoke", "checkpoints/smoke", ".vpd/smoke/tracked.json")
OBJECT = re.compile(r"[0-9a-f]{2}/[0-9a-f]{30}(\.dir)?")


# --------------------------------------------------------------------------------------------------------------- helpers
def blocks(heading: str) -> list[list[str]]:
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, flags=re.S | re.M)[1]
    found = re.findall(r"```sh\n(.*?)```", section.replace("mini", "smoke"), flags=re.S)
    return [[line.split("  #")[0].strip() for line in block.splitlines() if line.strip()] for block in found]


def script(lines: list[str], folder: Path) -> str:
    """Run ``lines`` in one shell, which stops at the first that fails; all that they print."""
    return run("set -e\n" + "\n".join(lines), folder)


def edit(folder: Path, change) -> None:
    path = folder / "params.yaml"
    document = yaml.safe_load(path.read_text())
    change(document)
    path.write_text(yaml.safe_dump(document, sort_keys=False))


def cut(document: dict) -> None:
    document["experiments"] = {name: document["experiments"][name] for name in NAMES}
    used = {line["checkpoint"] for line in document["experiments"].values()}
    document["backbones"] = {name: line for name, line in document["backbones"].items() if name in used}
    for table in document["tables"].values():
        table["rows"] = [row for row in table["rows"] if row.get("experiment") in NAMES and not row.get("released")]
    document["tables"] = {name: table for name, table in document["tables"].items() if table["rows"]}
    document |= {"figures": {}, "questions": [], "registered": {"depth": "depth-full"}}


def settled(folder: Path) -> Path:
    """A clone with its virtual environment, newer than what it was installed from, and an author for git."""
    if not (folder / ".venv").exists():
        (folder / ".venv").symlink_to(ROOT / ".venv")
    for name in ("requirements.lock", "pyproject.toml"):
        os.utime(folder / name, (0, 0))
    run("git config user.name Anna; git config user.email anna@example.org", folder)
    return folder


def equal(first: Path, second: Path) -> bool:
    """Whether both hold the same results, data, checkpoints and weights, byte for byte."""
    return contents(first) == contents(second)


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file that the workflow made; locks are no results, and only where something was made."""
    paths = [path for top in MADE for path in [folder / top, *(folder / top).rglob("*")]]
    files = [path for path in paths if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest() for path in files}


def objects(store: Path) -> set[str]:
    """Names of the objects in a remote or cache, each of which must hold what its name says."""
    found = {str(path.relative_to(store / "files/md5")): path for path in store.glob("files/md5/*/*")}
    found = {name: path for name, path in found.items() if OBJECT.fullmatch(name)}
    for name, path in found.items():
        digest = name.replace("/", "").removesuffix(".dir")
        assert hashlib.md5(path.read_bytes()).hexdigest() == digest, f"{path} is damaged"
    return set(found)


def killed_at(command: str, folder: Path, store: Path, count: int) -> int:
    """Start ``command``, kill it with SIGKILL once ``store`` holds ``count`` files, and say how many it holds then."""
    process = subprocess.Popen(
        command.split(), cwd=folder, env=ENVIRONMENT, start_new_session=True, stdout=subprocess.DEVNULL
    )
    while process.poll() is None and len(list(store.glob("files/md5/*/*"))) < count:
        time.sleep(0.005)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return len(list(store.glob("files/md5/*/*")))


@dataclass(frozen=True)
class Group:
    """Who shares: the first clone, its git server and the DVC remote."""

    first: Path
    origin: Path
    store: Path  # folder that the remote is, on this machine too where it is reached by SSH
    prefix: str  # what makes the path of a folder an address
    access: list[str]  # what every clone must set to reach the remote

    def clone(self, folder: Path) -> Path:
        run(f"git clone -q {self.origin} {folder}", self.origin)
        settled(folder)
        script(self.access, folder)
        return folder

    def another_remote(self, name: str, clone: Path) -> Path:
        store = self.store.with_name(name)
        run(f"dvc remote add --local {name} {self.prefix}{store}", clone)
        script([line.replace(" group ", f" {name} ") for line in self.access], clone)
        return store


# -------------------------------------------------------------------------------------------------------------- fixtures
@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project of a few experiments that Snakemake made whole, and whose results git does not ignore."""
    folder = settled(copy_of_project(tmp_path_factory.mktemp("made")))
    edit(folder, cut)
    ignored = folder / ".gitignore"
    ignored.write_text(ignored.read_text().replace("/results/smoke/\n", ""))
    run("git add --all && git commit -qm project && snakemake --cores 2", folder)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ssh_server(tmp_path_factory.mktemp("ssh")) as found:
        yield found


def first_of_group(made: Path, root: Path) -> tuple[Path, Path]:
    first, origin = root / "first", root / "origin.git"
    run(f"cp -a {made} {first} && git init -q --bare {origin}", root)
    run(f"git remote add origin {origin} && git push -q --set-upstream origin HEAD", first)
    return first, origin


@pytest.fixture(scope="module", params=["folder", "ssh"])
def group(request, made, server, tmp_path_factory):
    """The first clone has shared all, by the page's commands."""
    root = tmp_path_factory.mktemp(request.param)
    first, origin = first_of_group(made, root)
    (share,), (add, *access), store = blocks(SHARE), *blocks(SERVER), root / "remote"
    prefix = server.url(Path("/"))[:-1] if request.param == "ssh" else ""
    if prefix:
        share = [add.replace("ssh://storage.example.org/srv/vpd", prefix + str(store)), *access, *share[1:]]
    access = [settings(line, server) for line in access] if prefix else []
    script([settings(line, server).replace("/shared/vpd/remote", str(store)) for line in share], first)
    return Group(first, origin, store, prefix, access)


def settings(line: str, server) -> str:
    return line.replace("user anna", f"user {server.user}").replace("~/.ssh/id_ed25519", str(server.keyfile))


@pytest.fixture(scope="module")
def second(group):
    """Another clone, by the page's commands, and what they printed."""
    (lines,), root = blocks(HAVE), group.origin.parent / "elsewhere/deeper"
    root.mkdir(parents=True)
    assert lines[:2] == ["git clone git@git.example.org:group/vpd.git", "cd vpd"]
    clone = group.clone(root / "vpd")
    return clone, script(lines[2:], clone)


# ----------------------------------------------------------------------------------------------------------- two clones
def test_the_second_clone_runs_nothing_and_has_all(group, second):
    clone, said = second
    assert stages_run(said) == set()
    assert "Nothing to be done" in said
    assert equal(group.first, clone)
    assert {f"results/smoke/{name}" for name in ("REPORT.md", "report.html", "tables/cells.csv")} <= set(
        contents(clone)
    )
    assert list((clone / "predictions").glob("*.panel.png"))
    for command in ("vpd show", "dvc metrics show", "dvc params diff"):
        assert run(command, clone) == run(command, group.first)
    assert run("git status --short", clone) == ""
    assert changed(clone) == set()  # also after Snakemake touched what is linked to the cache


@pytest.mark.parametrize("group", ["ssh"], indirect=True)
def test_two_changes_meet_and_only_the_report_is_made_again(group, second):
    clone, (change, take_over) = second[0], blocks(CHANGE)
    edit(clone, lambda document: document["experiments"]["depth-full"].update(training={"optimizer": {"lr": 2.0e-4}}))
    ran = stages_run(script(change, clone))
    assert {name for name in ran if "@" in name} == {"train@depth-full", "evaluate@depth-full"}

    edit(group.first, lambda document: document["experiments"]["seg-clip"].update(model={"drop_path": 0.2}))
    script(change[:-1], group.first)
    assert "rejected" in run(change[-1], group.first, succeed=False)
    ran = stages_run(script(take_over, group.first))
    assert "report" in ran
    assert not [name for name in ran if "@" in name]
    script(change[1:], group.first)

    assert stages_run(script(take_over, clone)) == set()
    assert equal(group.first, clone)


def test_a_killed_push_and_a_killed_pull_are_completed_by_the_next(group, tmp_path):
    found = []
    for count in (1, 100):
        name = f"killed-{count}"
        store = group.another_remote(name, group.first)
        before = killed_at(f"dvc push --remote {name}", group.first, store, count)
        run(f"dvc push --remote {name}", group.first)
        assert "in sync" in run(f"dvc status --cloud --remote {name}", group.first)
        clone = group.clone(tmp_path / name)
        group.another_remote(name, clone)
        killed_at(f"dvc pull --remote {name}", clone, clone / ".dvc/cache", count)
        run(f"dvc pull --remote {name}", clone)
        assert equal(clone, group.first)
        assert changed(clone) == set()
        found.append(before < len(objects(store)))
    assert any(found), "no push was killed before its end"


# ------------------------------------------------------------------------------------------------- shared cache and data
@pytest.fixture(scope="module")
def in_folder(made, tmp_path_factory):
    """A group whose remote is a folder, for what does not depend on the kind of remote."""
    root = tmp_path_factory.mktemp("group")
    first, origin = first_of_group(made, root)
    script([line.replace("/shared/vpd/remote", str(root / "remote")) for line in blocks(SHARE)[0]], first)
    return Group(first, origin, root / "remote", "", [])


def test_clones_with_one_cache_hold_links_to_one_copy(in_folder, tmp_path):
    (lines,), cache = blocks(CACHE), tmp_path / "cache"
    lines = [line.replace("/shared/vpd/cache", str(cache)) for line in lines]
    clones = [in_folder.clone(tmp_path / name) for name in ("one", "two")]
    script(lines, clones[0])
    script([line for line in lines if line != "dvc pull"], clones[1])  # the first one's pull serves the second
    weights = "results/smoke/runs/seg-fast/seed0/final.safetensors"
    assert os.path.samefile(clones[0] / weights, clones[1] / weights)
    for clone in clones:
        assert stages_run(run("dvc repro", clone)) == set()
        run("snakemake --touch --cores 1", clone)
        assert "Nothing to be done" in run("snakemake -n", clone)
        assert changed(clone) == set()
        assert equal(clone, in_folder.first)
    edit(clones[0], lambda document: document["experiments"]["seg-fast"].update(model={"timestep": 0}))
    run("dvc repro evaluate@seg-fast", clones[0])
    assert not filecmp.cmp(clones[0] / weights, clones[1] / weights, shallow=False)
    assert equal(clones[1], in_folder.first)


@pytest.fixture(scope="module")
def on_shared_storage(in_folder, tmp_path_factory):
    """A clone whose ADE20K lies in a shared folder that git carries a link to."""
    root = tmp_path_factory.mktemp("shared")
    shutil.copytree(in_folder.first / "data/smoke/ade20k", root / "datasets/ade20k")
    for name in ("fingerprint.json", "manifest.json", "preview.png"):
        (root / "datasets/ade20k" / name).unlink()
    clone = in_folder.clone(root / "clone")
    run("dvc pull", clone)
    line = {"format": "ade20k", "source": "folder", "path": "datasets/ade20k"}
    edit(clone, lambda document: document["scales"]["smoke"]["datasets"].update(ade20k=line))
    (lines,) = blocks(DATASETS)
    script([line.replace("/shared/vpd/datasets", str(root / "datasets")) for line in lines], clone)
    return clone


def test_a_dataset_on_shared_storage_is_found_by_every_clone(on_shared_storage, in_folder, tmp_path):
    share = "dvc repro data@ade20k && git commit -qam data && dvc push && git push -q origin HEAD:shared"
    run(share, on_shared_storage)
    assert not (on_shared_storage / "data/smoke/ade20k/ADEChallengeData2016").exists()
    clone = in_folder.clone(tmp_path / "further/away/clone")
    run("git checkout -q shared && dvc pull data@ade20k", clone)
    assert stages_run(run("dvc repro data@ade20k", clone)) == set()
    assert stages_run(run("dvc repro evaluate@seg-clip", clone)) >= {"train@seg-clip", "evaluate@seg-clip"}


def test_a_dataset_that_changes_on_shared_storage_is_checked_again(on_shared_storage):
    label = on_shared_storage / "datasets/ade20k/ADEChallengeData2016/annotations/training/ADE_train_00000001.png"
    before, listed = label.read_bytes(), on_shared_storage / "data/smoke/ade20k/manifest.json"
    files = set()
    for content in (before + b"x", before):
        label.write_bytes(content)
        assert stages_run(run("dvc repro data@ade20k", on_shared_storage)) == {"data@ade20k"}
        files.add(listed.read_text())
        assert stages_run(run("dvc repro data@ade20k", on_shared_storage)) == set()
    assert len(files) == 2


def test_settings_are_tried_from_the_queue(on_shared_storage, in_folder):
    """From the shared data too: a queued run works in a copy of the commit, where git's link leads to the same place."""
    clone, (lines,) = on_shared_storage, blocks(QUEUE)
    run("dvc repro data@ade20k && (git commit -qam data || true)", clone)
    before = (clone / "params.yaml").read_text()
    start = lines.index("dvc queue start --jobs 2")
    try:
        script([*lines[:start], lines[start] + " > workers.log 2>&1"], clone)  # they would hold on to a pipe
        wait_for_the_queue(clone)
        said = script(lines[start + 1 :], clone)
    finally:
        run("dvc queue stop --kill", clone)
    assert "Running stage 'train@depth-full'" in said
    assert (clone / "params.yaml").read_text() == before
    spec = yaml.safe_load((clone / "results/smoke/specs/depth-full.json").read_text())
    assert spec["training"]["optimizer"]["lr"] == 2e-4
    edit(clone, lambda document: document["experiments"]["depth-full"].update(training={"optimizer": {"lr": 2.0e-4}}))
    assert stages_run(run("dvc repro evaluate@depth-full", clone)) == set()
    run("git stash && dvc exp pull origin a64 && dvc exp apply a64", clone)
    spec = yaml.safe_load((clone / "results/smoke/specs/seg-fast.json").read_text())
    assert spec["model"]["attention"]["limit"] == 1.0


def test_one_changed_number_is_compared_by_dvc_and_mlflow(in_folder, tmp_path):
    """The worked example of docs/compare.md."""
    clone = in_folder.clone(tmp_path / "changed")
    run("dvc pull", clone)
    page = (ROOT / "docs/compare.md").read_text(encoding="utf-8").replace("mini", "smoke")
    by_dvc, by_mlflow = ([line.split("  #")[0] for line in block.splitlines()] for block in code(page, "sh"))
    said = script(by_dvc[:4], clone)
    assert stages_run(said) == {"train@seg-fast", "evaluate@seg-fast"}
    assert "lower-rate" in said
    assert re.search(r"headlines/seg-fast\.json +miou_ss +[\d.]+ +[\d.]+ +-?[\d.]+", said)
    assert (clone / "dvc_plots/index.html").is_file()
    script(by_dvc[4:], clone)
    assert run("git status --short", clone) == ""
    assert stages_run(run("dvc repro evaluate@seg-fast", clone)) == set()
    (line,) = code(page, "yaml")
    params = clone / "params.yaml"
    edit(clone, lambda document: document["experiments"].update(yaml.safe_load(line)))
    assert "open the runs with: mlflow server" in script(by_mlflow[:2], clone)
    client = MlflowClient(f"sqlite:///{clone / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("vpd-smoke").experiment_id])
    assert {"seg-fast/seed0", "seg-fast-lower/seed0"} <= {found.info.run_name for found in runs}
    assert yaml.safe_load(params.read_text())["experiments"]["seg-fast-lower"]["training"] == {
        "optimizer": {"lr": 0.002}
    }


def code(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.S | re.M)


def wait_for_the_queue(folder: Path) -> None:
    deadline, said = time.monotonic() + 400, ""
    while time.monotonic() < deadline:
        said = run("dvc queue status", folder)
        if not re.search(r"Queued|Running", said):
            break
        time.sleep(1)
    assert said.count("Success") == 2, said + run("dvc queue logs a64; dvc queue logs lower-rate", folder)


# ------------------------------------------------------------------------------------------------------------- the page
def test_every_block_of_the_page_is_run_above():
    used = (SHARE, SERVER, HAVE, CHANGE, CACHE, DATASETS, QUEUE)
    assert PAGE.count("```sh") == sum(len(blocks(heading)) for heading in used)
