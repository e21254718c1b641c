"""Every command in README.md is run: by the fixtures of test_reproduce.py, or here."""

import re
import subprocess
from pathlib import Path

import pytest

from test_reproduce import ENVIRONMENT, by_dvc  # noqa: F401

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```(?:sh|bash)\n(.*?)```", README, flags=re.S)
    for line in block.splitlines()
    if line.split("#")[0].strip()
]
RUN_BY_FIXTURES = {"make reproduce", "snakemake --cores 2"}
THIS_TEST_RUN = {"make test"}
SERVERS = {"make ui"}


def test_readme_has_commands():
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in RUN_BY_FIXTURES | THIS_TEST_RUN | SERVERS])
def test_command_works(command, by_dvc):  # noqa: F811
    """At the smoke scale, after `make reproduce`."""
    done = subprocess.run(
        command.replace("mini", "smoke"), shell=True, cwd=by_dvc, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", sorted(RUN_BY_FIXTURES | THIS_TEST_RUN | SERVERS))
def test_command_is_in_the_readme(command):
    assert command in COMMANDS


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
