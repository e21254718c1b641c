"""``vpd diff``: two results folders, cell by cell, against hand values."""

from pathlib import Path

import pandas as pd
import pytest

from vpd.cli import main
from vpd.report.cells import compare_cells, read_cells

RESULTS = Path(__file__).parent.parent / "results" / "mini"


def test_differences_are_named_with_their_noise(tmp_path, capsys):
    """One cell is 1.5 higher, one is gone and one is quoted no more; a folder equals itself."""
    assert main(["diff", str(RESULTS), str(RESULTS)]) == 0
    assert "cells are equal" in capsys.readouterr().out
    frame, one, other = pd.read_csv(RESULTS / "tables/cells.csv"), tmp_path / "one.csv", tmp_path / "other.csv"
    rows = (frame["table"] == "table5") & (frame["row"] == "no prompt")
    frame.loc[rows & (frame["column"] == "miou_8k"), "sd"] = 0.4
    frame.to_csv(one, index=False)
    frame.loc[rows & (frame["column"] == "miou_8k"), "value"] += 1.5
    frame = frame[~(rows & (frame["column"] == "miou_4k"))]
    quoted = (frame["table"] == "table4") & (frame["row"] == "BTS, default") & (frame["column"] == "rmse")
    frame.loc[quoted, "provenance"] = "measured"
    frame.to_csv(other, index=False)
    different = compare_cells(read_cells(one), read_cells(other))
    assert len(different) == 3
    higher = different.loc["table5", "no prompt", "miou_8k"]
    assert (higher["difference"], higher["seeds' noise"]) == pytest.approx((1.5, 0.4 * 2**0.5))
    assert different.loc["table5", "no prompt", "miou_4k"]["source"] == "measured -> absent"
    assert different.loc["table4", "BTS, default", "rmse"]["source"] == "quoted -> measured"
    assert main(["diff", str(one), str(other)]) == 1
    text = capsys.readouterr().out
    assert text.startswith("3 of ")
    assert "| table5 | no prompt | miou_8k |" in text


@pytest.mark.parametrize(("text", "message"), [(None, "does not exist"), ("a,b\n1,2\n", "has no column 'table'")])
def test_a_folder_without_results_is_refused(tmp_path, capsys, text, message):
    (tmp_path / "tables").mkdir()
    if text:
        (tmp_path / "tables/cells.csv").write_text(text)
    assert main(["diff", str(RESULTS), str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
