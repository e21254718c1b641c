"""docs/one-table.md: its figures are those of the present settings, and its commands work (Snakemake's: test_workflows.py)."""

import importlib.util
import re
from pathlib import Path

import pytest

from vpd.cli import main

ROOT = Path(__file__).parent.parent
_module = importlib.util.spec_from_file_location("one_table", ROOT / "docs" / "one_table.py")
one_table = importlib.util.module_from_spec(_module)
_module.loader.exec_module(one_table)
PAGE = one_table.PAGE.read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
ELSEWHERE = {
    "git clone https://git.example.org/group/vpd.git",
    "cd vpd",
    "make setup",
    ". .venv/bin/activate",
    "make ui",  # test_mlflow_ui.py
    "export VPD_LIVE=http://127.0.0.1:5000",  # test_group_tracking.py
    "vpd preload dvc repro $(vpd plan table5 --targets)",  # test_plan.py
    "vpd track --scale paper",  # test_tracking.py
}
SAID = {
    "vpd fetch": (0, "ade20k "),
    "vpd fetch ade20k": (2, "if you accept them, run: vpd fetch ade20k --accept-licence"),
    "vpd report --scale paper": (2, "run the evaluate stage first"),
}
"""Command of the page, but without consent -> its exit status and what it says in a new clone."""


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with the settings of the project, where nothing is done."""
    monkeypatch.chdir(tmp_path)
    return one_table.Clone(tmp_path)


def test_the_marked_parts_are_fresh():
    """Run `python docs/one_table.py` if this fails."""
    assert one_table.page() == PAGE


def test_no_other_table_takes_fewer_gpu_hours_or_a_smaller_download(clone):
    taken = {title: clone.planned(words)[1] for title, words in clone.rows() if words and words[0].startswith("table")}
    for measure in (one_table.gpu_hours, lambda needs: sum(job.downloaded for job in needs.values())):
        assert min(taken, key=lambda title: measure(taken[title])) == "Table 5"


def test_a_price_is_hours_by_speed_and_price(clone, monkeypatch):
    monkeypatch.setattr(one_table, "GPUS", {"fast": (4.0, 3.0)})
    hours = one_table.gpu_hours(clone.planned(["table5"])[1])
    assert f"| Table 5 | ${hours * 0.75:.0f} |" in one_table.money(clone)


@pytest.mark.usefixtures("clone")
@pytest.mark.parametrize("command", SAID)
def test_what_a_command_says_in_a_new_clone(command, capsys):
    status, said = SAID[command]
    assert main(command.split()[1:]) == status
    assert said in "".join(capsys.readouterr())


def test_each_command_of_the_page_is_run_somewhere(capsys):
    left = [line.replace(" --accept-licence", "") for line in COMMANDS if line not in ELSEWHERE]
    (check,) = (line for line in left if line.startswith("python -c "))
    assert {line for line in left if not line.startswith(("python -c ", "snakemake "))} == SAID.keys()
    exec(check.split('"')[1])
    assert re.match(r"\d+ \[", capsys.readouterr().out)
