"""``vpd diff``: two results folders, cell by cell, against hand values."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from vpd.cli import main
from vpd.report.cells import compare_cells, read_cells

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "mini"


@pytest.fixture
def other(tmp_path):
    """A copy of the cells in which one is 1.5 higher, one is gone and one is quoted no more."""
    folder = tmp_path / "other"
    shutil.copytree(RESULTS / "tables", folder / "tables")
    frame = pd.read_csv(folder / "tables/cells.csv")
    rows = (frame["table"] == "table5") & (frame["row"] == "no prompt")
    frame.loc[rows & (frame["column"] == "miou_8k"), "value"] += 1.5
    frame = frame[~(rows & (frame["column"] == "miou_4k"))]
    quoted = (frame["table"] == "table4") & (frame["row"] == "BTS, default") & (frame["column"] == "rmse")
    frame.loc[quoted, "provenance"] = "measured"
    frame.to_csv(folder / "tables/cells.csv", index=False)
    return folder


def test_a_folder_equals_itself(capsys):
    assert main(["diff", str(RESULTS), str(RESULTS)]) == 0
    assert "cells are equal" in capsys.readouterr().out


def test_differences_are_named_with_their_noise(other, capsys):
    found = compare_cells(read_cells(RESULTS), read_cells(other))
    assert len(found) == 3
    higher = found.loc["table5", "no prompt", "miou_8k"]
    sd = read_cells(RESULTS).loc[("table5", "no prompt", "miou_8k"), "sd"]
    assert higher["difference"] == pytest.approx(1.5)
    assert higher["seeds' noise"] == pytest.approx(sd * 2**0.5)
    assert found.loc["table5", "no prompt", "miou_4k"]["source"] == "measured -> absent"
    assert found.loc["table4", "BTS, default", "rmse"]["source"] == "quoted -> measured"
    assert main(["diff", str(RESULTS), str(other)]) == 1
    said = capsys.readouterr().out
    assert said.startswith("3 of ")
    assert "| table5 | no prompt | miou_8k |" in said


@pytest.mark.parametrize(("text", "message"), [(None, "does not exist"), ("a,b\n1,2\n", "has no column 'table'")])
def test_what_is_no_results_folder_is_said(tmp_path, capsys, text, message):
    (tmp_path / "tables").mkdir()
    if text:
        (tmp_path / "tables/cells.csv").write_text(text)
    assert main(["diff", str(RESULTS), str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
