"""The files that services and tools read agree with the Makefile and the lock: CI, pre-commit, containers, Conda."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
RECIPES = {
    name: (ROOT / "workflow/containers" / name).read_text(encoding="utf-8") for name in ("Dockerfile", "vpd.def")
}
GITHUB = sorted((ROOT / ".github").rglob("*.yml"))


def read(path: Path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", GITHUB, ids=lambda path: path.name)
def test_forms_and_workflows_are_yaml_that_names_what_it_is(path):
    content = read(path)
    wanted = {"workflows": {"name", "jobs"}, "ISSUE_TEMPLATE": {"name", "description", "body"}}[path.parent.name]
    assert wanted <= content.keys()


def test_ci_on_github_runs_targets_of_the_makefile_on_the_oldest_python():
    jobs = read(ROOT / ".github/workflows/test.yml")["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    targets = {target for step in steps for target in re.findall(r"^make (.*)$", step.get("run", ""), re.M)}
    phony = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.M)[1].split())
    assert "test" in targets
    assert {name for target in targets for name in target.split()} <= phony
    (oldest,) = {step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", "")}
    assert f'requires-python = ">={oldest}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_pre_commit_runs_checks_of_make_lint():
    (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.M)[1]
    for hook in repository["hooks"]:
        assert hook["entry"].removeprefix(".venv/bin/").replace(" --force-exclude", "") in lint


@pytest.mark.parametrize("name", RECIPES)
def test_a_container_has_what_make_setup_installs(name):
    install = " ".join(re.findall(r"pip install .*", RECIPES[name]))
    assert "--require-hashes --requirement requirements.lock" in install
    assert "--no-deps --no-build-isolation --editable ." in install
    assert re.findall(r"^F(?:ROM|rom:) (\S+)$", RECIPES[name], re.M) == ["python:3.11-slim-bookworm"]
    for variable in ("DVC_NO_ANALYTICS", "MLFLOW_DISABLE_TELEMETRY"):
        assert variable in RECIPES[name]
        assert f"export {variable}" in MAKEFILE


def test_an_image_leaves_out_what_git_ignores():
    patterns = (ROOT / ".dockerignore").read_text().split()
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()}
    assert {"data", "checkpoints", ".vpd", ".venv", "logs", "downloads", "results/*/runs"} & ignored <= set(patterns)


def test_conda_installs_the_locked_packages():
    *_, pip = read(ROOT / "environment.yml")["dependencies"]
    assert pip == {"pip": ["--requirement requirements.lock"]}
    assert "--hash=sha256:" in (ROOT / "requirements.lock").read_text(encoding="utf-8")
