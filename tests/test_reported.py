"""reported.yaml against numbers typed from the paper by hand, and its own bookkeeping."""

from pathlib import Path

import pytest

from vpd.config.params import load_params
from vpd.config.reported import load_reported

PARAMS = Path(__file__).parents[1] / "params.yaml"

TYPED = [
    ("table1", {"method": "VPD"}, "miou_ss", 53.7),
    ("table1", {"method": "VPD"}, "miou_ms", 54.6),
    ("table1", {"method": "VPD"}, "gflops", 891),
    ("table1", {"method": "ConvNeXt-XL"}, "miou_ms", 54.0),
    ("table2", {"method": "VPD-A32"}, "miou_ss_4k", 43.1),
    ("table2", {"method": "VPD-A32"}, "miou_ms_8k", 49.5),
    ("table2", {"method": "VPD-A64"}, "miou_ms_4k", 44.7),
    ("table2", {"method": "DINO-ViT-B/8"}, "miou_ss_8k", 40.8),
    ("table3", {"method": "VPD", "schedule": "default"}, "refcoco", 73.25),
    ("table3", {"method": "VPD", "schedule": "default"}, "refcoco+", 62.69),
    ("table3", {"method": "VPD", "schedule": "default"}, "refcocog", 61.96),
    ("table3", {"method": "VPD", "schedule": "fast-1-epoch"}, "refcoco", 63.04),
    ("table3", {"method": "LAVT", "schedule": "default"}, "refcocog", 61.24),
    ("table3-released", {"dataset": "refcoco"}, "oiou", 73.46),
    ("table4", {"method": "VPD", "schedule": "default"}, "rmse", 0.254),
    ("table4", {"method": "VPD", "schedule": "default"}, "delta1", 0.964),
    ("table4", {"method": "VPD", "schedule": "default"}, "log10", 0.030),
    ("table4", {"method": "VPD", "schedule": "fast-1-epoch"}, "rmse", 0.349),
    ("table4", {"method": "SwinV2-L", "schedule": "fast-1-epoch"}, "rmse", 0.381),
    ("table5", {"text_prompt": False}, "miou_8k", 46.9),
    ("table5", {"text_prompt": True, "text_adapter": False}, "miou_4k", 42.0),
    ("table5", {"cross_attn": "mid"}, "miou_8k", 47.8),
    ("table5", {"cross_attn": "up+down"}, "miou_8k", 48.7),
    ("table6", {"backbone": "SAM"}, "rmse", 0.317),
    ("table6", {"backbone": "BLIP"}, "rmse", 0.368),
    ("figure3", {"checkpoint": "SD-1-5"}, "miou_8k", 48.7),
]


@pytest.mark.parametrize(("table", "match", "column", "value"), TYPED)
def test_number_is_the_paper_s(table, match, column, value):
    source = load_reported()[table]
    (index,) = source.matching(match)
    assert source.rows[index][column] == value


def test_shape_of_the_paper():
    shape = {name: (len(table.rows), len(table.columns)) for name, table in load_reported().items()}
    assert shape == {
        "table1": (6, 5), "table2": (7, 4), "table3": (9, 3), "table4": (13, 6), "table5": (7, 2), "table6": (3, 1),
        "figure3": (1, 1), "table1-released": (1, 2), "table3-released": (3, 7), "table4-released": (1, 1),
    }  # fmt: skip


def test_decimals_follow_the_print():
    tables = load_reported()
    found = [tables["table1"].decimals(column) for column in ("iters", "miou_ss")]
    assert [*found, tables["table3"].decimals("refcoco"), tables["table4"].decimals("rmse")] == [0, 1, 2, 3]


def test_every_row_is_run_at_every_scale_or_says_why_not():
    params = load_params(PARAMS, scale="mini")
    for name, table in load_reported().items():
        rows = params.tables[name].rows if name in params.tables else ()
        run = {table.matching(row.match)[0] for row in rows if not row.released}
        run |= set(range(len(table.rows))) if name in params.figures and params.figures[name].points else set()
        for index, row in enumerate(table.rows):
            assert (index in run) != bool(row.get("quoted")), (name, table.label(index))
