"""The report against numpy, pandas, scipy and hand-worked verdicts, on results that the test itself writes."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import yaml

from evaluated_world import DAMAGED_METRICS, TIMING, write_evaluated
from report_world import PARAMS, extras, measured, report_params, write_picture, write_results, write_world
from vpd.config.claims import load_claims
from vpd.config.params import Params, load_params
from vpd.config.paths import evaluated
from vpd.config.reported import load_reported, load_reruns
from vpd.config.tables import BeyondRow, FigureSpec, TableRow, TableSpec, band, check_layout
from vpd.evaluation.results import nested
from vpd.report.cells import Cell, number
from vpd.report.collect import collect, read_costs, read_curves, read_measures
from vpd.report.experiments import POINTS, loss_curve
from vpd.report.figures import Curve, learning_figure, styled, trend_figure
from vpd.report.judge import SETTING, Judge, all_cells
from vpd.report.provenance import backbones, runs_of
from vpd.report.report import pretraining_steps
from vpd.report.tables import by_row, own_columns, table_csv, table_view
from vpd.report.write import write_report
from vpd.utils.errors import UserError
from vpd.utils.files import read_json, write_json
from vpd.utils.fingerprint import Fingerprint

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def params():
    return report_params()


@pytest.fixture(scope="module")
def world(tmp_path_factory, params):
    root = tmp_path_factory.mktemp("world")
    return root, write_world(root, params)


def write_run(folder, experiment, metrics):
    """A metrics file of one seed."""
    write_json(
        folder / f"{experiment}.json", nested([{"seed": 0, "milestone": "final", "step": 1, "metrics": metrics}])
    )


def read_cells(folder):
    frame = pd.read_csv(folder / "tables" / "cells.csv", dtype=str, keep_default_na=False)
    return frame.set_index(["table", "row", "column"], drop=False).sort_index()


@pytest.fixture(scope="module")
def cells(world):
    return read_cells(world[1][0])


def test_every_printed_number_has_exactly_one_line(cells, params):
    assert cells.index.is_unique
    for name, table in load_reported().items():
        printed = sorted(row[column] for row in table.rows for column in table.columns if row.get(column) is not None)
        lines = cells[(cells["table"] == name) & (cells["paper"] != "")]
        assert sorted(lines["paper"].astype(float)) == pytest.approx(printed), name
    assert set(cells.loc["figure3", "row"]) == set(params.figures["figure3"].points)


def test_means_and_deviations_equal_pandas(world, cells):
    frame = collect(world[1][0] / "metrics", ["seg-empty"])
    values = frame[(frame["milestone"] == "final") & (frame["metric"] == "miou_ss")]["value"]
    cell = cells.loc["table5", "no prompt", "miou_8k"]
    assert float(cell["value"]) == pytest.approx(values.mean(), abs=1e-6)
    assert float(cell["sd"]) == pytest.approx(np.std(values.to_numpy(), ddof=1), abs=1e-6)
    assert (int(cell["seeds"]), cell["experiment"], float(cell["paper"])) == (3, "seg-empty", 46.9)


def test_mean_and_deviation_do_not_depend_on_the_order_of_seeds():
    values = tuple(np.random.default_rng(0).normal(40, 9, 25))
    for seed in range(5):
        shuffled = tuple(np.random.default_rng(seed).permutation(values))
        first, second = (Cell("t", "r", "c", None, "measured", values=v) for v in (values, shuffled))
        assert (first.value, first.sd) == (second.value, second.sd)


@pytest.mark.parametrize(
    ("value", "paper", "comparable", "others", "ours", "verdict"),
    [
        (54.4, 53.7, True, (), False, "reproduced"),  # the edge of the band of 0.7 belongs to it
        (53.1, 53.7, True, (), False, "reproduced"),
        (54.41, 53.7, True, (), False, "differs"),
        (52.9, 53.7, True, (), False, "differs"),
        (53.7, 53.7, False, (), False, "miniature"),
        (53.7, None, True, (), False, "beyond the paper"),
        (53.7, None, False, (), False, "beyond the paper"),
        (52.6, 53.7, True, (53.1,), False, "as re-run by others"),
        (52.3, 53.7, True, (53.1,), False, "differs"),
        (53.9, 53.7, True, (53.1,), False, "reproduced"),
        (53.9, 53.7, True, (), True, "agrees, protocol: ours"),
        (50.0, 53.7, True, (), True, "differs, protocol: ours"),
        (50.0, None, True, (), True, "beyond the paper"),
    ],
)
def test_verdicts(value, paper, comparable, others, ours, verdict):
    judge, reruns = Judge({("a", "final.x"): ({0: value}, "measured")}, comparable), tuple(("TADP", n) for n in others)
    assert judge.cell(("t", "r", "c"), paper, ("a", "final.x"), 0.7, ours=ours, reruns=reruns).verdict == verdict


def test_every_quoted_cell_names_its_reason(cells):
    quoted = cells["provenance"] == "quoted"
    assert set(cells[quoted]["verdict"]) == {"quoted"}
    assert (cells[quoted]["value"] == cells[quoted]["paper"]).all()
    assert set(cells[quoted]["experiment"]) == {""}
    own = cells[cells["provenance"] == "measured"]
    assert set(own["verdict"]) == {"miniature", "beyond the paper"}
    assert "missing" not in set(cells["provenance"])
    assert (cells[quoted]["reason"].str.len() > 10).all()
    assert set(cells[~quoted]["reason"]) == {""}
    settings = cells[quoted & cells["column"].isin(["iters", "crop"])]
    assert len(settings) == 10
    assert set(settings["reason"]) == {SETTING}
    reasons = cells["reason"]
    assert "language model" in reasons["table3", "VLT, default", "refcoco"]
    assert "real images" in reasons["table1-released", "released weights", "miou_ss"]
    assert "no experiment" not in " ".join(cells["reason"])  # every row of the paper is either run or explained


def test_counted_columns_are_held_against_the_paper_by_the_networks_size(world, cells, params):
    """Whatever the scale trains: these counts are of networks of the paper's size."""
    shown = cells.loc[[("table1", row, "gflops") for row in ("VPD", "Swin-L")], ["value", "seeds", "verdict"]]
    assert shown.to_numpy().tolist() == [["890.85", "", "reproduced"], ["700", "", "differs"]]
    frame = collect(world[1][0] / "metrics", params.experiments)
    small = all_cells(params, load_reported(), frame, {"seg-full": {"GMACs, mmcv": 0.5}})
    found = {cell.row: cell for cell in small if (cell.table, cell.column) == ("table1", "gflops")}
    assert (found["VPD"].value, found["VPD"].verdict, found["VPD"].provenance) == (0.5, "miniature", "counted")
    assert (found["Swin-L"].provenance, found["Swin-L"].value) == ("quoted", 647)
    assert "costs" in found["Swin-L"].reason


def test_verdicts_at_a_comparable_scale(tmp_path):
    params = load_params(PARAMS, scale="paper")
    spec = params.resolve("depth-full")
    write_run(tmp_path, "depth-full", {"rmse": 0.259, "delta1": 0.9, "rel": 0.069})
    cells = {(c.table, c.row, c.column): c for c in all_cells(params, load_reported(), collect(tmp_path, [spec.name]))}
    row = "VPD, default"
    found = [cells["table4", row, column] for column in ("rmse", "delta1", "delta2", "rel")]
    assert [cell.verdict for cell in found] == ["reproduced", "differs", "not run", "reproduced"]
    assert found[2].provenance == "missing"
    assert found[0].difference == pytest.approx(0.005)


def test_tolerances_of_row_and_table_come_before_the_general_one():
    row = TableRow(match={"a": 1}, label="x", experiment="e", tolerances={"c": 3.0})
    plain = TableRow(match={"a": 2}, label="y", experiment="e")
    table = TableSpec(columns={"c": "final.oiou", "d": "final.oiou"}, rows=(row, plain), tolerances={"c": 2.0})
    found = [band("t", table, r, column, {"oiou": 1.0}) for r in (row, plain) for column in ("c", "d")]
    assert found == [3.0, 1.0, 2.0, 1.0]
    with pytest.raises(UserError, match=r"tables\.t\.columns\.d: unknown metric in tolerances 'oiou'"):
        band("t", table, row, "d", {"rmse": 1.0})


def test_numbers_are_written_short_and_fixed():
    texts = {None: "", 53.6: "53.6", 160000: "160000", 1 / 3: "0.333333", -1e-9: "0", 31.25: "31.25"}
    assert {value: number(value) for value in texts} == texts


def test_missing_metrics_are_cells_that_say_so(tmp_path, params, world):
    source = world[1][0] / "metrics"
    for name in ("seg-empty", "seg-prompt"):
        (tmp_path / f"{name}.json").write_bytes((source / f"{name}.json").read_bytes())
    (tmp_path / "an-old-experiment.json").write_text("{}")
    frame = collect(tmp_path, params.experiments)
    assert set(frame["experiment"]) == {"seg-empty", "seg-prompt"}
    cells = all_cells(params, load_reported(), frame)
    absent = [cell for cell in cells if cell.experiment == "seg-adapter"]
    assert {(cell.table, cell.column) for cell in absent} == {("table5", "miou_4k"), ("table5", "miou_8k")}
    assert {(cell.provenance, cell.verdict, cell.value) for cell in absent} == {("missing", "not run", None)}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [*DAMAGED_METRICS],
)
def test_damaged_metrics_are_refused(tmp_path, content, sentence):
    with pytest.raises(UserError, match="metrics of none of the 1 experiments; run the evaluate stage first"):
        collect(tmp_path, ["a"])
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=sentence):
        collect(tmp_path, ["a"])


REPORTED = load_reported()


def table(columns=None, **row):
    row = {"match": {"method": "VPD"}, "label": "VPD", "experiment": "seg-full"} | row
    return TableSpec(columns=columns or {"miou_ss": "final.miou_ss"}, rows=(TableRow(**row),))


@pytest.mark.parametrize(
    ("name", "spec", "sentence"),
    [
        ("tabel1", table(), "unknown table of the paper 'tabel1'; did you mean 'table1'?"),
        ("table1", table({"miou": "final.miou_ss"}), "unknown column 'miou'; did you mean 'miou_ss'?"),
        ("table1", table(experiment="seg-ful"), "unknown experiment 'seg-ful'; did you mean 'seg-full'?"),
        ("table1", table(match={"metod": "VPD"}), "unknown key of a row 'metod'; did you mean 'method'?"),
        ("table1", table(match={"method": "VDP"}), "no row of the paper has method=VDP; did you mean 'method=VPD'?"),
        ("table3", table({"refcoco": "final.oiou"}), "matches 2 rows of the paper (VPD, default; VPD, fast-1-epoch)"),
        ("table1", table(experiment=None, experiments={"miou_ms": "e"}), "unknown measured column 'miou_ms'; did you"),
        ("table1", table(label="Swin-L"), "two rows would be called 'Swin-L'"),
    ],
)
def test_mistakes_in_tables_are_sentences(name, spec, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_layout({name: spec}, REPORTED, ["seg-full"])


def test_trend_stands_at_the_steps_of_the_milestones_or_of_the_figure(params):
    steps = pretraining_steps(params, "figure3", params.figures["figure3"])
    expected = [0] + [params.milestones[name] for name in list(steps)[1:]]
    assert list(steps.values()) == expected
    assert expected == sorted(expected)
    params = load_params(PARAMS, scale="paper")
    points = {"untrained": "seg-untrained", "sd-1-1": "seg-sd-1-1"}
    known = FigureSpec(metric="final.miou_ss", points=points, steps={"sd-1-1": 194000})
    assert pretraining_steps(params, "figure3", known) == {"untrained": 0, "sd-1-1": 194000}
    with pytest.raises(UserError, match=r"steps of 'sd-1-1' are not known; add it to figures\.figure3\.steps"):
        pretraining_steps(params, "figure3", FigureSpec(metric="final.miou_ss", points=points))


def test_the_trend_s_axes_show_the_numbers():
    points = [(0, measured("zero", (20.0, 22.0))), (100, measured("one", (30.0, 34.0)))]
    with styled():
        (axes,) = trend_figure(points, comparable=False).axes
    line = next(line for line in axes.lines if len(line.get_xdata()) == 2)
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0, 100], [21.0, 32.0])
    assert {text.get_text() for text in axes.texts} >= {"zero", "one"}


def test_learning_curves_draw_baselines_behind_vpd_and_the_metric_where_it_is_measured_twice():
    history = pd.DataFrame({"seed": [0, 0, 1, 1], "step": [1, 2, 1, 2], "loss": [2.0, 1.0, 4.0, 3.0]})
    scores = pd.DataFrame({"seed": [0, 0, 1, 1], "step": [1, 2, 1, 2], "value": [10.0, 30.0, 20.0, 40.0]})
    curves = [Curve("MAE", "ade20k", False, history), Curve("VPD", "ade20k", True, history, scores)]
    with styled():
        losses, metric = learning_figure([*curves, Curve("VPD", "nyuv2", True)], "miou_ss").axes
    mae, vpd = losses.lines
    assert list(vpd.get_ydata()) == [3.0, 2.0]
    assert vpd.get_zorder() > mae.get_zorder()
    assert (vpd.get_linestyle(), mae.get_linestyle()) == ("-", "--")
    assert vpd.get_color() != mae.get_color()
    (line, *_) = metric.lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2], [15.0, 35.0])
    assert (losses.get_ylabel(), metric.get_ylabel()) == ("training loss", "mIoU, single scale (%)")
    assert learning_figure([Curve("VPD", "ade20k", True)], "miou_ss") is None


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pages(results):
    """Every file of the report."""
    folders = {f"{name}/{file}": text for name in ("tables", "figures") for file, text in files(results / name).items()}
    return folders | {name: (results / name).read_bytes() for name in ("REPORT.md", "report.html")}


def test_the_report_has_every_table_and_figure(world, params):
    names = {name.removesuffix(".csv") for name in files(world[1][0] / "tables") if name.endswith(".csv")}
    assert names == {*load_reported(), "cells", "values", "claims", "costs", "backbones", "provenance"}
    names = {name.removesuffix(".svg") for name in files(world[1][0] / "figures") if name.endswith(".svg")}
    drawn = {name for name, figure in params.figures.items() if figure.drawn}
    assert names == drawn | {"training-segmentation", "training-depth", "training-referring"}


def links(folder):
    """Links of REPORT.md, all of which lead to files."""
    targets = re.findall(r"\]\(([^)]+)\)", (folder / "REPORT.md").read_text(encoding="utf-8"))
    assert [target for target in targets if not (folder / unquote(target)).is_file()] == []
    return targets


def test_every_link_of_the_report_resolves(world):
    targets = links(world[1][0])
    assert len(targets) > 30
    assert not [target for target in targets if target.startswith(("/", "..", "http"))]
    ignored = ["git", "check-ignore", *(f"results/mini/{target}" for target in targets)]
    assert subprocess.run(ignored, cwd=PARAMS.parent, capture_output=True, text=True).stdout == ""


def test_the_report_shows_tables_and_findings(world, cells, params):
    text = (world[1][0] / "REPORT.md").read_text(encoding="utf-8")
    assert text.index("| Pre-training matters | Figure 3 | +") < text.index("### Table 1")
    table = text[text.index("| claim | shown in |") : text.index("<details>")]
    assert len(re.findall(r"^\| ", table, flags=re.M)) == 2 + len(load_claims())  # with head and rule
    folded = text[text.index("<details>") : text.index("</details>")]
    every = pd.read_csv(world[1][0] / "tables" / "claims.csv")
    paper = every[every["section"] == "paper"]
    assert len(re.findall("^\\| ", folded, flags=re.M)) == len(paper) + 2 * len(load_claims())  # with heads and rules
    verdicts = paper.drop_duplicates("claim")["verdict"].value_counts()
    opening = text.partition(f"The paper's {len(load_claims())} claims: ")[2].partition(".")[0]
    assert {name: int(count) for count, name in re.findall(r"(\d+) ([a-z ]+)", opening)} == dict(verdicts)
    mean, sd = cells.loc[("table5", "no prompt", "miou_8k"), ["value", "sd"]].astype(float)
    assert f"**{mean:.1f} ± {sd:.1f}**<br>paper 46.9" in text
    assert "| MAttNet, default | 56.51 | 46.67 | 47.64 | quoted |" in text
    assert "- MAttNet, default: no public weights in a format of the libraries used here" in text
    assert "<br>paper 647 (+53)" in text
    assert f"| train | {len(params.experiments)} |" in text


def test_tables_as_csv_read_back(world, params):
    tables = world[1][0] / "tables"
    frame = pd.read_csv(tables / "table5.csv")[:7]  # the paper's rows
    assert list(frame["cross_attn"]) == ["none", "none", "none", "mid", "down", "up", "up+down"]
    assert list(frame["miou_8k_paper"]) == [46.9, 47.1, 48.0, 47.8, 48.2, 48.5, 48.7]
    difference = (frame["miou_8k"] - frame["miou_8k_paper"]).to_numpy()
    assert frame["miou_8k_difference"].to_numpy() == pytest.approx(difference, abs=2e-6)
    costs = pd.read_csv(tables / "costs.csv").set_index("experiment")
    assert sorted(costs.index) == sorted(params.experiments)
    seeds = len(params.resolve("seg-fast").seeds)
    assert costs.loc["seg-fast", "seconds_per_seed"] == pytest.approx(100.5 / seeds)
    assert tuple(costs.loc["seg-fast", ["table", "row", "peak_mb", "GMACs"]]) == ("Table 2", "VPD-A32", 800, 971.77)
    claims = pd.read_csv(tables / "claims.csv")
    assert set(claims["section"]) == {"paper", "beyond the paper"}
    assert len(claims[claims["claim"] == "VPD beats LAVT after one epoch"]) == 3
    provenance = pd.read_csv(tables / "provenance.csv", dtype=str).set_index("run")
    line = provenance.loc["mini/official/seg-fast/seed2"]
    assert (line["code"], line["weights"], line["spec"]) == ("c0de" * 4, "2" * 64, params.resolve("seg-fast").digest())


def test_a_run_says_what_made_it_and_what_is_not_recorded_is_empty(params, tmp_path):
    row = {"seed": 0, "milestone": "final", "step": 1, "metrics": {"x": 1.0}}
    write_evaluated(tmp_path, "seg-full", [row], made=Fingerprint("s", ""), timing=None)
    write_evaluated(tmp_path, "seg-fast", [row], made=Fingerprint("s", "abc", {"data": "d", "checkpoint": "e"}))
    names = ("seg-full", "seg-fast", "seg-t0")
    few, all_, none = (runs_of(params, name, evaluated(tmp_path, name).provenance) for name in names)
    assert [list(run.values())[5:] for run in few] == [["s", "", "", "", "0" * 64, "", "", ""]]
    assert [list(run.values())[5:] for run in all_] == [
        ["s", "abc", "d", "e", "0" * 64, TIMING["commit"], "2023-11-14 22:14 UTC", 90.5]
    ]
    assert (few[0]["run"], none) == ("mini/official/seg-full/seed0", [])


def test_a_time_that_no_calendar_has_is_refused(params, tmp_path):
    row = {"seed": 0, "milestone": "final", "step": 1, "metrics": {"x": 1.0}}
    write_evaluated(tmp_path, "seg-full", [row], timing=TIMING | {"ended": 1e300})
    with pytest.raises(UserError, match=r"provenance/seg-full\.json has a training that ended 1e\+300 seconds"):
        runs_of(params, "seg-full", evaluated(tmp_path, "seg-full").provenance)


def test_a_loss_curve_is_drawn_to_scale_and_thinned():
    frame = pd.DataFrame({"seed": [0, 0, 0, 1], "step": [1, 2, 5, 3], "loss": [4.0, 2.0, np.nan, 3.0]})
    curve = loss_curve(frame)
    assert curve["lines"] == ["0,0 150,100", "300,50 300,50"]  # one point is drawn as a dot
    assert (curve["steps"], curve["losses"]) == (["1", "3"], ["2", "4"])
    steps = np.arange(1, 1001)
    curve = loss_curve(pd.DataFrame({"seed": 0, "step": steps, "loss": 1.0 * steps}))
    (line,) = [[tuple(map(float, point.split(","))) for point in line.split()] for line in curve["lines"]]
    assert len(line) == POINTS
    assert line == sorted(line)
    assert curve["steps"] == ["1", "1000"]
    flat = pd.DataFrame({"seed": 0, "step": [1, 2], "loss": [np.inf, np.inf]})
    assert [loss_curve(None), loss_curve(flat)] == [None, None]


def test_pre_trained_networks_say_what_they_saw(world, params):
    found = {item["checkpoint"]: item for item in backbones(params, world[1][0] / "backbones")}
    assert set(found) == {line.checkpoint for line in params.experiments.values()}
    assert found["sd-1-5"]["images_seen"] == params.milestones["sd-1-5"] > params.milestones["sd-1-1"]
    other = next(item for name, item in found.items() if name not in params.milestones)
    assert (other["objective"], other["images_seen"], other["parameters"]) == ("masked-image", 6400, 1_500_000)
    text = (world[1][0] / "REPORT.md").read_text(encoding="utf-8")
    assert "| masked-image | 6,400 | 1.5 M | 2.5 → 0.75 | linear probe 0.61 against 0.22 |" in text
    assert {item["source"] for item in backbones(params, world[0])} == {"not here", "weights in git"}


def test_damaged_histories_costs_and_manifests_are_refused(tmp_path, params):
    for text, sentence in (
        ("", "is not a CSV file"),
        ("seed,step\n0,1\n", r"no column 'loss' \(columns: seed, step\)"),
    ):
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(UserError, match=sentence):
            read_curves(tmp_path / "a.csv", ("seed", "step", "loss"))
    (tmp_path / "costs.json").write_text('{"seg-full": {"figures": 3}}')
    with pytest.raises(
        UserError, match=r"costs\.json: seg-full\.figures: input should be a valid dictionary, found 3; write it again"
    ):
        read_costs(tmp_path / "costs.json")
    (tmp_path / "swin-l.json").write_text('{"phases": {"x": {"loss": 1}}}')
    with pytest.raises(UserError, match=r"is not a backbone's manifest \('measures'\); make the backbone again"):
        backbones(params, tmp_path)


def test_writing_again_gives_the_same_bytes(world, params):
    results, pretraining, previews = world[1]
    before = pages(results)
    write_report(params, results, pretraining, previews, results, **extras(world[0], params))
    assert pages(results) == before


def test_a_report_of_one_experiment_has_all_files(params, world, tmp_path):
    write_json(tmp_path / "metrics/seg-fast.json", read_json(world[1][0] / "metrics/seg-fast.json"))
    previews = {"ade20k": tmp_path / "absent.png"}
    write_report(params, tmp_path, tmp_path / "absent", previews, tmp_path)
    assert pages(tmp_path).keys() == pages(world[1][0]).keys()
    assert links(tmp_path)
    assert "not run" in (tmp_path / "REPORT.md").read_text(encoding="utf-8")


def test_texts_of_params_can_neither_end_a_cell_nor_add_html(params, tmp_path, world):
    title = "<b>bold</b> | a\nsecond line"
    spec = params.tables["table5"]
    rows = tuple(row.model_copy(update={"label": f"{title} {index}"}) for index, row in enumerate(spec.rows))
    tables = params.tables | {"table5": spec.model_copy(update={"title": title, "rows": rows})}
    question = params.questions[0].model_copy(update={"title": title})
    document = params.document.model_copy(update={"tables": tables, "questions": (question,), "figures": {}})
    write_report(Params(document, params.source), world[1][0], world[1][1], {}, tmp_path)
    text, page = ((tmp_path / name).read_text(encoding="utf-8") for name in ("REPORT.md", "report.html"))
    assert text.count("&lt;b>bold&lt;/b> \\| a second line") >= 2 * len(rows)
    assert (tmp_path / "tables/table5.md").read_text(encoding="utf-8") in text
    assert "<b>bold" not in text + page
    assert page.count("&lt;b&gt;bold") >= 2 * len(rows)
    lines = [line for line in text.partition("### Table 5")[2].splitlines() if line.startswith("| ")][:9]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {5}


class Elements(HTMLParser):
    """Counts elements with the names of their attributes, and collects all text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = Counter(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found[tag, *(name for name, _ in attrs)] += 1

    def handle_data(self, data):
        self.text.append(data)


HOSTILE = "{0} \"'></code></dialog></script><img src=x onerror=alert()><script>alert()</script>`|{{{{ 7 * 7 }}}}"
FIELDS = (
    "code", "settings", "data", "checkpoint", "weights", "commit", "machine", "stage", "job", "milestone", "metric",
    "source", "objective", "measure", "title", "lr_rule",
)  # fmt: skip


def report_with(texts, params, folder):
    """The page of one experiment whose results hold ``texts`` by field."""
    metrics = {"miou_ss": 1.0, texts["metric"]: 2.0}
    rows = [{"seed": 0, "milestone": name, "step": 1, "metrics": metrics} for name in (texts["milestone"], "final")]
    made = Fingerprint("", texts["code"], {role: texts[role] for role in ("data", "checkpoint")})
    write_evaluated(folder, "seg-fast", rows, made=made, timing=TIMING | {"commit": texts["commit"]})
    provenance = read_json(folder / "provenance/seg-fast.json")
    provenance["fingerprint"]["settings"] = texts["settings"]
    provenance["runs"]["seed0"]["files"]["final.safetensors"] = texts["weights"]
    write_json(folder / "provenance/seg-fast.json", provenance)
    for stage, job in (("train", "seg-fast"), (texts["stage"], texts["job"])):
        timing = {"stage": stage, "name": job, "seconds": 1.0, "machine": texts["machine"]}
        write_json(folder / f"timing/{len(job)}.json", timing)
    states = {"trained": {texts["measure"]: 0.6}, "fresh": {texts["measure"]: 0.2}}
    phase = {"loss": {"first": 2.0, "last": 1.0}, "measures": states}
    facts = {"source": texts["source"], "objective": texts["objective"], "phases": {"x": phase}}
    write_json(folder / "backbones/swin-l.json", facts)
    rules = [{"match": re.escape(texts["lr_rule"]), "multiplier": 1.0}]
    line = params.experiments["seg-fast"].model_copy(update={"training": {"optimizer": {"lr_rules": rules}}})
    questions = (params.questions[0].model_copy(update={"title": texts["title"]}),)
    update = {"experiments": params.experiments | {"seg-fast": line}, "questions": questions, "figures": {}}
    write_report(Params(params.document.model_copy(update=update), params.source), folder, folder, {}, folder)
    return Elements((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def harmless_and_hostile(params, tmp_path_factory):
    hostile = {name: HOSTILE.format(name) for name in FIELDS}
    harmless = {name: re.sub(r"\W", "x", text) for name, text in hostile.items()}
    return [report_with(texts, params, tmp_path_factory.mktemp("page")) for texts in (harmless, hostile)]


@pytest.mark.parametrize("name", FIELDS)
def test_texts_of_others_stay_texts_in_the_page(harmless_and_hostile, name):
    _, hostile = harmless_and_hostile
    expected = HOSTILE.format(name)
    if name == "lr_rule":  # as the spec of the drawer shows it, in YAML
        (spec,) = [text for text in hostile.text if "name: seg-fast\n" in text]
        assert yaml.safe_load(spec)["training"]["optimizer"]["lr_rules"][0]["match"] == re.escape(expected)
    else:
        assert expected in "".join(hostile.text)


def test_texts_of_others_add_no_element_to_the_page(harmless_and_hostile):
    harmless, hostile = harmless_and_hostile
    assert harmless.found == hostile.found
    assert "49" not in {text.strip() for text in hostile.text}


@pytest.mark.parametrize("name", ["REPORT.md", "report.html", "tables/thesis.csv", "figures/mine.png"])
def test_files_of_others_are_not_replaced_by_a_report(params, world, tmp_path, name):
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(UserError, match=r"is not of a report that vpd wrote.*name another --out"):
        write_report(params, *world[1], tmp_path / "mine")
    assert path.read_text() == "mine"


def test_a_report_is_not_replaced_by_less(params, world, tmp_path):
    results = shutil.copytree(world[1][0], tmp_path / "results")
    before = files(results / "figures")
    for folder in ("figures", "tables"):  # as a kill between two renames leaves them
        (results / folder).rename(results / f".{folder}.old")
    write_report(params, results, tmp_path / "absent", {"ade20k": tmp_path / "absent"}, results)
    assert files(results / "figures") == before
    (results / "metrics" / "seg-empty.json").unlink()
    kept = files(results)
    with pytest.raises(UserError, match=r"2 measured numbers that are not here any more, first table5, no prompt"):
        write_report(params, results, tmp_path / "absent", {}, results)
    assert files(results) == kept


def test_tiles_count_what_was_measured_and_not_what_was_counted(world, params):
    page = (world[1][0] / "report.html").read_text(encoding="utf-8")
    tile = page.partition("<h2>Measured numbers</h2>")[2].partition("</ul>")[0]
    measured = sum(read_cells(world[1][0])["provenance"] == "measured")
    assert sum(map(int, re.findall(r"<b>(\d+)</b>", tile))) == measured
    assert "counted" in set(read_cells(world[1][0])["provenance"])


def test_what_nobody_published_is_never_called_reproduced(tmp_path):
    """At the paper's scale, with every measurement equal to the paper's number."""
    params = load_params(PARAMS, scale="paper")
    exact = {}
    for name, table in params.tables.items():
        for row in table.rows:
            reported = load_reported()[name].rows[load_reported()[name].matching(row.match)[0]]
            exact |= {(row.source(c), r): reported[c] for c, r in table.columns.items() if c in reported}
    lines = [(e, 0, *reference.split("."), value, "measured") for (e, reference), value in exact.items()]
    frame = pd.DataFrame(lines, columns=["experiment", "seed", "milestone", "metric", "value", "provenance"])
    cells = all_cells(params, load_reported(), frame)
    verdicts = {(cell.table, cell.row): cell.verdict for cell in cells if cell.values}
    assert verdicts["table1", "VPD"] == "reproduced"
    assert verdicts["table4", "VPD, default"] == "reproduced"
    assert verdicts["table4", "VPD, 1 epoch"] == "agrees, protocol: ours"
    unpublished = {verdict for (table, _), verdict in verdicts.items() if table in ("table2", "table5")}
    assert unpublished == {"agrees, protocol: ours"}


def test_a_row_beyond_the_paper_stands_below_its_rows():
    params = load_params(PARAMS, scale="mini")
    added, missing = BeyondRow(label="t = 0", experiment="seg-t0"), BeyondRow(label="other", experiment="seg-attached")
    tables = {"table5": params.tables["table5"].model_copy(update={"beyond": (missing, added)})}
    params = Params(params.document.model_copy(update={"tables": tables}), params.source)
    found = {"seg-t0": (10.0, 20.0), "seg-up": (7.0, 8.0), "seg-fast": (8.0, 9.0)}
    stages = [
        (name, stage, value)
        for name, both in found.items()
        for stage, value in zip(("half", "final"), both, strict=True)
    ]
    lines = [(name, 0, stage, "miou_ss", value, "measured") for name, stage, value in stages]
    frame = pd.DataFrame(lines, columns=["experiment", "seed", "milestone", "metric", "value", "provenance"])
    rows = by_row(all_cells(params, load_reported(), frame), "table5")
    *paper, other, last = rows
    assert (len(paper), last) == (7, "t = 0")
    assert {column: cell.value for column, cell in rows[last].items()} == {"miou_4k": 10.0, "miou_8k": 20.0}
    assert {(cell.paper, cell.verdict) for cell in rows[last].values()} == {(None, "beyond the paper")}
    csv = table_csv(load_reported()["table5"], rows).splitlines()
    assert csv[-2:] == [
        'other,,,,,,,,,,,,"not run, beyond the paper"',
        't = 0,,,,10,,,,20,,,,"measured, 1 seed, beyond the paper"',
    ]
    view = {row["label"]: row for row in table_view("table5", "", load_reported()["table5"], rows)["rows"]}
    assert (view[other]["origin"], view[last]["origin"]) == (
        "not run, beyond the paper",
        "measured, 1 seed, beyond the paper",
    )
    assert [name for name, row in view.items() if row["cells"][0]["best"]] == [paper[-1]]  # of the paper's rows alone
    columns = own_columns(all_cells(params, load_reported(), frame), "table5", tables["table5"])
    assert {column: [cell.row for cell in cells] for column, cells in columns.items()} == dict.fromkeys(columns, paper)
    known, reported = params.experiments, load_reported()
    for wrong, message in (
        ({"label": "+ mid attention"}, "would be called"),
        ({"experiment": "seg-t"}, "unknown exper"),
    ):
        table = tables["table5"].model_copy(update={"beyond": (added.model_copy(update=wrong),)})
        with pytest.raises(UserError, match=message):
            check_layout({"table5": table}, reported, known)


def test_numbers_of_others_stand_beside_the_papers(world, cells):
    assert cells.loc[("table1", "VPD", "miou_ss"), "reruns"] == "53.1 (TADP); 53.06 (VPD#43)"
    assert cells.loc[("table4", "VPD, default", "rmse"), "reruns"] == "0.248 (TADP); 0.253 (mmsegmentation)"
    assert "others 53.1, 53.1" in (world[1][0] / "tables/table1.md").read_text()


def test_every_rerun_is_of_a_cell_of_the_paper():
    tables = load_reported()
    for rerun in load_reruns():
        assert len(tables[rerun.table].matching(rerun.match)) == 1
        assert set(rerun.values) <= set(tables[rerun.table].columns)


def test_released_weights_fill_rows_of_their_own_beside_the_readmes_numbers(tmp_path):
    params = load_params(PARAMS, scale="paper")
    params.figures = {}  # which take time and are not looked at
    results, *inputs = write_results(tmp_path, params, seeds=(0,))
    released = results / "released/metrics"
    write_run(released, "refcoco-full", {"p50": 85.5, "oiou": 73.41, "miou": 70.0})
    write_run(released, "zoedepth", {"rmse": 0.271})
    embeddings = {"mean": 0.9996, "worst": 0.998, "worst_class": "door", "in_order": 1}
    embeddings["by_class"] = {"wall": 1, "door": 1}
    facts = {"file": "a.pth", "sha256": "ab" * 32, "vae_difference": 0.0, "class_embeddings": embeddings}
    zoedepth = {"file": "model.safetensors", "repo": "a/b", "revision": "52ae69caf7896c92", "sha256": "c" * 64}
    facts = {"refcoco-full": facts, "seg-full": {"missing": "the link is dead"}}
    public = {"zoedepth": zoedepth | {"parameters": 345_000_000}}
    write_json(results / "released/index.json", {"released": facts, "public": public})
    write_report(params, results, *inputs, results)

    cells = read_cells(results)
    own = cells.loc["table3-released", "released weights, RefCOCO"]
    assert list(own.loc["oiou", ["value", "paper", "provenance", "verdict", "experiment"]]) == [
        "73.41", "73.46", "released-weights", "reproduced", "refcoco-full@released"
    ]  # fmt: skip
    assert own.loc["miou", "verdict"] == "differs"
    assert cells.loc["table1-released", "released weights", "miou_ss"]["provenance"] == "missing"
    assert cells.loc["table3", "VPD, default", "refcoco"]["paper"] == "73.25"
    report = (results / "REPORT.md").read_text(encoding="utf-8")
    assert "| `seg-full` | not measured: the link is dead | – | – |" in report
    assert "mean cosine with ours 0.9996, worst 0.9980 (door), 1 of 2 in our order |" in report
    assert "| `zoedepth` | model.safetensors of a/b at 52ae69caf789 | `cccccccccccccccc` | 345 M parameters |" in report
    zoe = next(row.label for row in params.tables["table4"].rows if row.match["method"] == "ZoeDepth")
    assert tuple(cells.loc[("table4", zoe, "rmse"), ["value", "verdict"]]) == ("0.271", "reproduced")
    page = (results / "report.html").read_text(encoding="utf-8")
    assert 'href="#released-zoedepth">0.271' in page
    assert 'href="#released-refcoco-full">73.41' in page
    assert page.count('<tr id="released-') == len(params.released)


# ----------------------------------------------------------------------------------------------------- small Stable Diffusion
TABLE = """images,thing,room,frechet,word_auc,text_matters
sd-1-1,0.1234,0.5,3.256,0.631,0.71
sd-1-5,0.8,0.9,0.5,0.73,0.812
real images,0.95,0.96,0.013,,
"""


def scale_of(params, **changes):
    """The settings with other ones for their scale."""
    scales = {**params.document.scales, params.scale: params.block.model_copy(update=changes)}
    return Params(params.document.model_copy(update={"scales": scales}), params.source)


def small_diffusion(params, world, folder, measures=None):
    """The section on the small Stable Diffusion in both pages of a report of one experiment; ``measures`` are a folder's."""
    write_json(folder / "metrics/seg-fast.json", read_json(world[1][0] / "metrics/seg-fast.json"))
    if measures:
        write_picture(measures / "drawn.png", np.random.default_rng(1))
        (measures / "measures.csv").write_text(TABLE)
    write_report(params, folder, folder / "absent", {}, folder)
    page = (folder / "report.html").read_text(encoding="utf-8").partition('<section id="pretraining">')[2]
    text = (folder / "REPORT.md").read_text(encoding="utf-8").partition("## The small Stable Diffusion")[2]
    return text.partition("\n## ")[0], re.sub(r"<[^>]+>", "|", page.partition("</section>")[0])


SMOKE, SHIPPED = {}, {"measures": None, "shipped": "scratch"}


@pytest.mark.parametrize(
    ("changes", "place", "seen"), [(SMOKE, "measures", (4, 20)), (SHIPPED, "weights/scratch", (2048, 204800))]
)
def test_measures_of_the_scale_or_of_its_weights_are_shown(world, tmp_path, monkeypatch, changes, place, seen):
    monkeypatch.chdir(tmp_path)
    params = scale_of(report_params("smoke"), **changes)
    if changes:
        sources = {name: spec.model_copy(update={"source": "shipped"}) for name, spec in params.checkpoints.items()}
        params = scale_of(params, checkpoints=sources)
    text, page = small_diffusion(params, world, tmp_path, tmp_path / place)
    head = "| images | objects with colour % | rooms % | Fréchet distance | words point, AUC | wrong caption costs more % |"
    rows = [
        f"| sd-1-1, {seen[0]:,} images (floor) | 12.3 | 50.0 | 3.26 | 0.63 | 71.0 |",
        f"| sd-1-5, {seen[1]:,} images | 80.0 | 90.0 | 0.50 | 0.73 | 81.2 |",
        "| real images (ceiling) | 95.0 | 96.0 | 0.01 | – | – |",
    ]
    lines = text.splitlines()
    assert lines[lines.index(head) + 2 :][:3] == rows
    assert "sd-1-1, " in page
    assert "81.2" in page
    assert (tmp_path / "figures/pretraining-samples.png").read_bytes() == (tmp_path / place / "drawn.png").read_bytes()
    assert "(figures/pretraining-samples.png)" in text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (SMOKE, "What it has learnt is not measured yet; `vpd measure --scale smoke` does it."),
        (SHIPPED, "The measures of the weights in git are not there yet; `make pretrain SCALE=scratch` makes them."),
        ({"measures": None}, ""),
    ],
)
def test_a_report_without_measures_says_what_makes_them(world, tmp_path, monkeypatch, changes, sentence):
    monkeypatch.chdir(tmp_path)
    text, page = small_diffusion(scale_of(report_params("smoke"), **changes), world, tmp_path)
    assert (sentence or "Loss of each phase") in text
    assert text.count("`") == 2 * bool(sentence)
    assert all(part in page for part in sentence.split("`"))
    assert "pretraining-samples" not in text
    assert not (tmp_path / "figures/pretraining-samples.png").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is not a CSV file"),
        ("version https://git-lfs.github.com/spec/v1\n", "has no column 'images'"),
        (TABLE.replace(",room", ",rooms"), "has no column 'room'"),
        (TABLE.replace("0.8", "high"), "has a text in its column 'thing', which holds numbers"),
    ],
)
def test_damaged_measures_are_one_sentence(tmp_path, content, sentence):
    (tmp_path / "measures.csv").write_text(content)
    with pytest.raises(UserError, match=rf"measures\.csv {sentence}.*run `vpd measure` again, or restore it with git"):
        read_measures(tmp_path)


# ------------------------------------------------------------------------------------------------------------ a new clone
def test_a_new_clone_makes_the_page_and_keeps_the_note_of_an_equal_report(tmp_path):
    """`make report`, without the data that the note of what the report was made from needs."""
    shutil.copytree(ROOT / "results/mini", tmp_path / "results/mini", ignore=shutil.ignore_patterns("runs", "*.html"))
    for name in ("params.yaml", "weights", "workflow"):
        (tmp_path / name).symlink_to(ROOT / name)
    note, report = tmp_path / "results/mini/tables/fingerprint.json", tmp_path / "results/mini/REPORT.md"
    before = note.read_bytes(), report.read_bytes()
    subprocess.run([sys.executable, "-m", "vpd", "report"], cwd=tmp_path, check=True)
    assert report.read_bytes() != before[1] or note.read_bytes() == before[0]
    assert (tmp_path / "results/mini/report.html").stat().st_size > 1e6
