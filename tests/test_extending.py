"""docs/extending.md, followed word for word: a backbone that the paper does not have is a line, in both orchestrators."""

import json
import re
from pathlib import Path

import pytest

from vpd.cli import main
from vpd.config.params import load_params
from vpd.evaluation.results import read_metrics

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
LINES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


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


def test_both_orchestrators_make_its_jobs_and_at_paper_scale_its_public_weights_are_fetched(project):
    spec = load_params(project / "params.yaml", "paper").backbone("dinov2-b")
    assert (spec.source, spec.repo) == ("hub", "timm/vit_base_patch14_dinov2.lvd142m")
    from test_reproduce import run

    jobs = ("vpd backbone dinov2-b --scale smoke", "vpd train seg-fast-dinov2", "vpd evaluate seg-fast-dinov2")
    by_dvc = run("dvc repro --dry --force evaluate@seg-fast-dinov2", project)
    by_snakemake = run("snakemake -n -p results/smoke/metrics/seg-fast-dinov2.json", project)
    for job in jobs:
        assert job in by_dvc
        assert job in by_snakemake


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
