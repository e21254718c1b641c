"""The report against numpy, pandas, scipy and hand-worked verdicts, on results that the test itself writes."""

import json
import re
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from PIL import Image

from vpd.errors import UserError
from vpd.params import load_params
from vpd.report.cells import Cell, Judge, all_cells, by_reference, number
from vpd.report.claims import compare, table_findings, trend_findings
from vpd.report.collect import collect, read_curves
from vpd.report.figures import pretraining_steps, trend_figure
from vpd.report.layout import FigureSpec, TableRow, TableSpec, band, check_layout, report_files
from vpd.report.reported import load_claims, load_reported, load_reruns
from vpd.report.statistics import difference
from vpd.report.style import styled
from vpd.report.write import write_report

PARAMS = Path(__file__).parents[1] / "params.yaml"
METRICS = {
    "segmentation": {"miou_ss": 30.0, "macc_ss": 40.0, "aacc_ss": 70.0, "miou_ms": 31.0},
    "referring": {"oiou": 45.0, "miou": 44.0, "p50": 50.0},
    "depth": {"rmse": 0.6, "delta1": 0.8, "delta2": 0.9, "delta3": 0.95, "rel": 0.2, "log10": 0.08},
}


def write_metrics(folder, spec, generator, seeds):
    level = generator.normal(0, 1.5)
    runs = [(seed, name, share) for seed in seeds for name, share in spec.training.milestones.items()]
    results = [
        {
            "seed": seed,
            "milestone": name,
            "step": int(200 * share),
            "metrics": {
                key: round(value * (1 + 0.05 * level * share + generator.normal(0, 0.02)), 6)
                for key, value in METRICS[spec.task].items()
            },
        }
        for seed, name, share in runs
    ]
    content = {
        "experiment": spec.name,
        "scale": spec.scale,
        "task": spec.task,
        "spec": spec.digest(),
        "results": results,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{spec.name}.json").write_text(json.dumps(content))


def write_history(path, generator, seeds):
    steps = np.arange(10, 201, 10)
    frames = [
        pd.DataFrame(
            {
                "seed": seed,
                "step": steps,
                "epoch": 0,
                "loss": 2 * np.exp(-steps / 80) + 0.3 + generator.normal(0, 0.05, 20),
            }
        )
        for seed in seeds
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(frames).assign(lr=1e-4, lr_unet=1e-5).to_csv(path, index=False)


def write_picture(path, generator):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(generator.integers(0, 255, (12, 36, 3), dtype=np.uint8)).save(path)


def write_results(root, params, seeds=(0, 1, 2)):
    """Results, pre-training outputs and previews as the other stages leave them."""
    generator = np.random.default_rng(7)
    results = root / "results"
    for name in params.experiments:
        spec = params.resolve(name)
        write_metrics(results / "metrics", spec, generator, seeds)
        write_history(results / "history" / f"{name}.csv", generator, seeds)
        for panel in ("predictions", "attention"):
            write_picture(results / "panels" / name / f"{panel}.png", generator)
        timing = {"stage": "train", "name": name, "seconds": 100.5, "steps": 200, "peak_mb": 800}
        (results / "timing").mkdir(exist_ok=True)
        (results / "timing" / f"train-{name}.json").write_text(json.dumps(timing))
    write_picture(root / "pretraining" / "samples.png", generator)
    steps = np.arange(20, 401, 20)
    frames = [
        pd.DataFrame({"phase": phase, "step": steps, "loss": 1 / np.sqrt(steps)}) for phase in ("vae", "clip", "unet")
    ]
    pd.concat(frames).to_csv(root / "pretraining" / "history.csv", index=False)
    previews = {"ade20k": root / "data" / "ade20k.png"}
    write_picture(previews["ade20k"], generator)
    return results, root / "pretraining", previews


@pytest.fixture(scope="module")
def params():
    """The project's own matrix, and a figure of dots whether or not params.yaml asks for one."""
    params = load_params(PARAMS, scale="mini")
    figures = params.figures | {"dots": FigureSpec(table="table2")}
    params.document = params.document.model_copy(update={"figures": figures})
    return params


@pytest.fixture(scope="module")
def world(tmp_path_factory, params):
    root = tmp_path_factory.mktemp("world")
    inputs = write_results(root, params)
    write_report(params, *inputs, inputs[0])
    return root, inputs


def read_cells(folder):
    return pd.read_csv(folder / "tables" / "cells.csv", dtype=str, keep_default_na=False)


# ---------------------------------------------------------------------------------------------------------------- cells
def test_every_printed_number_has_exactly_one_line(world, params):
    cells = read_cells(world[1][0])
    assert not cells.duplicated(["table", "row", "column"]).any()
    for name, table in load_reported().items():
        printed = sorted(row[column] for row in table.rows for column in table.columns if row.get(column) is not None)
        lines = cells[(cells["table"] == name) & (cells["paper"] != "")]
        assert sorted(lines["paper"].astype(float)) == pytest.approx(printed), name
    points = cells[cells["table"] == "figure3"]
    assert list(points["row"]) == list(params.figures["figure3"].points)


def test_means_and_deviations_equal_pandas(world):
    cells = read_cells(world[1][0]).set_index(["table", "row", "column"])
    frame = collect(world[1][0] / "metrics", ["seg-empty"])
    values = frame[(frame["milestone"] == "final") & (frame["metric"] == "miou_ss")]["value"]
    cell = cells.loc["table5", "no prompt", "miou_8k"]
    assert float(cell["value"]) == pytest.approx(values.mean(), abs=1e-6)
    assert float(cell["sd"]) == pytest.approx(np.std(values.to_numpy(), ddof=1), abs=1e-6)
    assert (int(cell["seeds"]), cell["experiment"], float(cell["paper"])) == (3, "seg-empty", 46.9)


def test_mean_and_deviation_do_not_depend_on_the_order_of_seeds():
    values = tuple(np.random.default_rng(0).normal(40, 9, 25))
    for _ in range(5):
        shuffled = tuple(np.random.default_rng(1).permutation(values))
        first, second = (Cell("t", "r", "c", None, "measured", values=v) for v in (values, shuffled))
        assert (first.value, first.sd) == (second.value, second.sd)


@pytest.mark.parametrize(
    ("value", "paper", "comparable", "verdict"),
    [
        (54.4, 53.7, True, "reproduced"),  # the edge of the band of 0.7 belongs to it
        (53.1, 53.7, True, "reproduced"),
        (54.41, 53.7, True, "differs"),
        (52.9, 53.7, True, "differs"),
        (53.7, 53.7, False, "miniature"),
        (53.7, None, True, "beyond the paper"),
        (53.7, None, False, "beyond the paper"),
    ],
)
def test_verdicts(value, paper, comparable, verdict):
    assert Judge({}, comparable).verdict(value, paper, 0.7) == verdict


def test_provenance_of_lines(world):
    cells = read_cells(world[1][0])
    quoted = cells[cells["provenance"] == "quoted"]
    assert set(quoted["verdict"]) == {"quoted"}
    assert (quoted["value"] == quoted["paper"]).all()
    assert set(quoted["experiment"]) == {""}
    assert "Swin-L" in set(quoted["row"])
    assert (cells[cells["table"] == "table3-released"]["provenance"] == "quoted").all()
    measured = cells[cells["provenance"] == "measured"]
    assert set(measured["verdict"]) == {"miniature", "beyond the paper"}
    assert set(cells[cells["verdict"] == "beyond the paper"]["table"]) == {"figure3"}


def test_verdicts_at_a_comparable_scale(tmp_path):
    params = load_params(PARAMS, scale="paper")
    spec = params.resolve("depth-full")
    results = [{"seed": 0, "milestone": "final", "step": 9, "metrics": {"rmse": 0.259, "delta1": 0.9, "rel": 0.069}}]
    (tmp_path / "depth-full.json").write_text(json.dumps({"experiment": spec.name, "results": results}))
    cells = {(c.table, c.row, c.column): c for c in all_cells(params, load_reported(), collect(tmp_path, [spec.name]))}
    row = params.tables["table4"].rows[0].label
    found = {column: cells["table4", row, column] for column in ("rmse", "delta1", "delta2", "rel")}
    assert {column: cell.verdict for column, cell in found.items()} == {
        "rmse": "reproduced",
        "delta1": "differs",
        "delta2": "not run",
        "rel": "reproduced",
    }
    assert found["delta2"].provenance == "missing"
    assert found["rmse"].difference == pytest.approx(0.005)


def test_tolerances_of_row_and_table_come_before_the_general_one():
    row = TableRow(match={"a": 1}, label="x", experiment="e", tolerances={"c": 3.0})
    plain = TableRow(match={"a": 2}, label="y", experiment="e")
    table = TableSpec(columns={"c": "final.oiou", "d": "final.oiou"}, rows=(row, plain), tolerances={"c": 2.0})
    found = [band("t", table, r, column, {"oiou": 1.0}) for r in (row, plain) for column in ("c", "d")]
    assert found == [3.0, 1.0, 2.0, 1.0]
    with pytest.raises(UserError, match=r"tables\.t\.columns\.d: unknown metric in tolerances 'oiou'"):
        band("t", table, row, "d", {"rmse": 1.0})


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (53.6, "53.6"), (160000, "160000"), (1 / 3, "0.333333"), (-1e-9, "0"), (31.25, "31.25")],
)
def test_numbers_are_written_short_and_fixed(value, text):
    assert number(value) == text


# -------------------------------------------------------------------------------------------------------------- collect
def test_missing_metrics_are_cells_that_say_so(tmp_path, params, world):
    source = world[1][0] / "metrics"
    for name in ("seg-empty", "seg-prompt"):
        (tmp_path / f"{name}.json").write_bytes((source / f"{name}.json").read_bytes())
    (tmp_path / "an-old-experiment.json").write_text("{}")
    frame = collect(tmp_path, params.experiments)
    assert set(frame["experiment"]) == {"seg-empty", "seg-prompt"}
    cells = all_cells(params, load_reported(), frame)
    absent = [cell for cell in cells if cell.experiment == "seg-adapter"]
    assert len(absent) == 2
    assert {(cell.provenance, cell.verdict, cell.value) for cell in absent} == {("missing", "not run", None)}


def test_no_metrics_at_all_is_an_error(tmp_path, params):
    with pytest.raises(UserError, match=r"metrics of none of the \d+ experiments; run the evaluate stage first"):
        collect(tmp_path / "nowhere", params.experiments)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"experiment": "a"', "not valid JSON"),
        ('{"experiment": "a"}', "not a metrics file"),
        ('{"experiment": "b", "results": []}', "holds the metrics of experiment 'b'"),
        ('{"experiment": "a", "results": [{"seed": 0, "milestone": "m", "step": 1, "metrics": {"x": NaN}}]}', "finite"),
    ],
)
def test_damaged_metrics_are_refused(tmp_path, content, sentence):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=sentence):
        collect(tmp_path, ["a"])


def test_a_seed_twice_is_refused(tmp_path):
    run = {"seed": 0, "milestone": "final", "step": 1, "metrics": {"x": 1.0}}
    (tmp_path / "a.json").write_text(json.dumps({"experiment": "a", "results": [run, run]}))
    with pytest.raises(UserError, match="holds a seed and milestone twice"):
        collect(tmp_path, ["a"])


def test_weights_of_the_authors_are_told_apart(tmp_path):
    run = {"seed": 0, "milestone": "final", "step": 1, "metrics": {"x": 1.0}}
    content = {"experiment": "a", "provenance": "released-weights", "results": [run]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert by_reference(collect(tmp_path, ["a"]))["a", "final.x"] == ({0: 1.0}, "released-weights")


# ----------------------------------------------------------------------------------------------------------- statistics
@pytest.mark.parametrize("sizes", [(3, 3), (2, 5), (8, 4)])
def test_interval_and_effect_equal_scipy_and_the_formula(sizes):
    generator = np.random.default_rng(sum(sizes))
    a, b = generator.normal(31, 0.4, sizes[0]), generator.normal(30, 1.2, sizes[1])
    found = difference(a, b)
    low, high = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    pooled = np.sqrt((a.var(ddof=1) * (len(a) - 1) + b.var(ddof=1) * (len(b) - 1)) / (len(a) + len(b) - 2))
    assert found.effect == pytest.approx((a.mean() - b.mean()) / pooled)


def test_one_seed_has_no_interval_and_no_spread_no_effect():
    assert difference([2.0], [1.0, 1.5]).low is None
    same = difference([2.0, 2.0], [1.0, 1.0])
    assert (same.low, same.high, same.effect, same.settled) == (1.0, 1.0, None, 1)


def measured(row, values, metric="miou_ss", paper=None):
    return Cell("t", row, "c", paper, "measured", "miniature", row, metric, tuple(range(len(values))), tuple(values))


@pytest.mark.parametrize(
    ("better", "worse", "metric", "outcome"),
    [
        ((31.0, 31.2, 31.1), (20.0, 20.4, 20.3), "miou_ss", "holds"),
        ((20.0, 20.4, 20.3), (31.0, 31.2, 31.1), "miou_ss", "does not hold, the opposite does"),
        ((20.0, 20.4, 20.3), (31.0, 31.2, 31.1), "rmse", "holds"),
        ((31.0, 29.0, 30.5), (30.0, 30.2, 28.3), "miou_ss", "not settled"),
        ((31.0,), (20.0,), "miou_ss", "as claimed, but of one seed"),
        ((31.0,), (20.0,), "rmse", "not as claimed, but of one seed"),
        ((), (20.0,), "miou_ss", "not run"),
    ],
)
def test_claims_say_what_was_seen(better, worse, metric, outcome):
    finding = compare("A helps", measured("a", better, metric), measured("b", worse, metric), 1)
    assert finding.outcome == outcome


def test_a_claim_reads_as_a_sentence():
    finding = compare("A helps", measured("a", (31.0, 32.0, 33.0), paper=48.0), measured("b", (30.0,), paper=47.1), 1)
    assert finding.sentence == (
        "'a' 32.0 ± 1.0 against 'b' 30.0: +2.00 (one seed, no interval). The paper's difference is +0.9."
    )


def test_trend_names_the_steps_that_fall():
    values = {"zero": (0, 20.0), "one": (100, 25.0), "two": (200, 24.5), "three": (300, 30.0)}
    points = [(steps, measured(name, (value - 0.1, value, value + 0.1))) for name, (steps, value) in values.items()]
    matters, longer, monotone = trend_findings(points[::-1], 1)
    assert (matters.outcome, longer.outcome, monotone.outcome) == ("holds", "holds", "does not hold")
    assert matters.sentence.startswith("'three' 30.0 ± 0.1 against 'zero' 20.0 ± 0.1: +10.0")
    assert longer.sentence.startswith("'three' 30.0 ± 0.1 against 'one' 25.0 ± 0.1")
    assert "2 of 3 steps" in monotone.sentence
    assert "'one' to 'two' (−0.5)" in monotone.sentence


def test_every_claim_of_the_paper_holds_for_the_paper_s_own_numbers():
    reported = load_reported()
    for claim in load_claims():
        table = reported[claim.table]
        ((better,), (worse,)) = (table.matching(match) for match in (claim.better, claim.worse))
        assert table.rows[better][claim.column] > table.rows[worse][claim.column], claim.title


def test_table_claims_are_tested_on_the_claimed_rows(params, world):
    cells = all_cells(params, load_reported(), collect(world[1][0] / "metrics", params.experiments))
    found = {finding.title: finding for finding in table_findings(load_claims(), load_reported(), cells)}
    assert len(found) == len(load_claims())
    sentence = found["The text adapter helps (Table 5, mIoU 8K)"].sentence
    assert sentence.startswith("'prompt + adapter' ")
    assert "against 'prompt' " in sentence
    assert sentence.endswith("The paper's difference is +0.9.")


# --------------------------------------------------------------------------------------------------------------- layout
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
        (
            "table1",
            table(experiment=None, experiments={"miou_ms": "seg-full"}),
            "unknown measured column 'miou_ms'; did you mean 'miou_ss'?",
        ),
        ("table1", table(label="Swin-L"), "two rows would be called 'Swin-L'"),
    ],
)
def test_mistakes_in_tables_are_sentences(name, spec, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_layout({name: spec}, REPORTED, ["seg-full"])


def test_one_reported_row_is_claimed_once():
    twice = TableSpec(columns=table().columns, rows=(*table().rows, *table(label="again").rows))
    with pytest.raises(UserError, match="row 'again': matches the row that 'VPD' already fills"):
        check_layout({"table1": twice}, REPORTED, ["seg-full"])


def test_mistakes_in_figures_and_tolerances_are_sentences():
    figures = {"figure4": FigureSpec(panels=("seg-fulll",))}
    with pytest.raises(UserError, match=r"figures\.figure4: unknown experiment 'seg-fulll'; did you mean 'seg-full'\?"):
        check_layout({}, REPORTED, ["seg-full"], figures)
    with pytest.raises(UserError, match="unknown table 'table5'"):
        check_layout({"table1": table()}, REPORTED, ["seg-full"], {"dots": FigureSpec(table="table5")})
    with pytest.raises(UserError, match="unknown metric in tolerances 'miou_ss'"):
        check_layout({"table1": table()}, REPORTED, ["seg-full"], tolerances={"rmse": 1.0})


@pytest.mark.parametrize(
    "fields", [{}, {"panel": "a", "panels": ["b"]}, {"points": {"a": "b"}}, {"metric": "final.x", "panel": "a"}]
)
def test_a_figure_is_of_one_kind(fields):
    with pytest.raises(ValueError, match="a figure needs"):
        FigureSpec.model_validate(fields)


def test_a_row_has_one_source():
    with pytest.raises(ValueError, match="needs either experiment or experiments"):
        TableRow(match={"a": 1}, label="x")


def test_params_of_every_scale_fit_the_paper():
    for scale in ("smoke", "mini", "paper"):
        loaded = load_params(PARAMS, scale=scale)
        check_layout(loaded.tables, REPORTED, loaded.experiments, loaded.figures, loaded.tolerances)


# -------------------------------------------------------------------------------------------------------------- figures
def test_trend_stands_at_the_steps_of_the_milestones(params):
    steps = pretraining_steps(params, "figure3", params.figures["figure3"])
    expected = [0] + [params.pretraining.milestones[name] for name in list(steps)[1:]]
    assert list(steps.values()) == expected
    assert expected == sorted(expected)


def test_without_pretraining_the_figure_itself_says_the_steps():
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


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("", "is not a CSV file"), ("seed,step\n0,1\n", r"has no column 'loss' \(columns: seed, step\)")],
)
def test_damaged_histories_are_refused(tmp_path, text, sentence):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_curves(path, ("seed", "step", "loss"))
    assert read_curves(tmp_path / "absent.csv", ("loss",)) is None


# --------------------------------------------------------------------------------------------------------------- report
def test_the_report_makes_exactly_the_files_it_promises(world, params):
    results, _, previews = world[1]
    made = [path for folder in ("tables", "figures") for path in (results / folder).rglob("*")]
    promised = report_files(params, previews)
    assert sorted(path.relative_to(results).as_posix() for path in made) == sorted(set(promised) - {"REPORT.md"})
    assert promised[-1] == "REPORT.md"
    assert len(set(promised)) == len(promised)


def test_every_link_of_the_report_resolves(world):
    results = world[1][0]
    text = (results / "REPORT.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 30
    for link in links:
        assert (results / unquote(link)).is_file(), link
    assert not [link for link in links if link.startswith(("/", "..", "http"))]


def test_the_report_shows_tables_and_findings(world, params):
    text = (world[1][0] / "REPORT.md").read_text(encoding="utf-8")
    assert text.index("Does pre-training matter?") < text.index("### Table 1")
    cells = read_cells(world[1][0])
    cell = cells[(cells["table"] == "table5") & (cells["row"] == "no prompt") & (cells["column"] == "miou_8k")].iloc[0]
    shown = f"**{float(cell['value']):.1f} ± {float(cell['sd']):.1f}**<br>paper 46.9"
    assert shown in text
    assert "| Swin-L | 160000 | 640 | 647 | 52.1 | 53.5 | quoted |" in text
    assert f"| train | {len(params.experiments)} |" in text


def test_tables_as_csv_read_back(world):
    frame = pd.read_csv(world[1][0] / "tables" / "table5.csv")
    assert list(frame["cross_attn"]) == ["none", "none", "none", "mid", "down", "up", "up+down"]
    assert list(frame["miou_8k_paper"]) == [46.9, 47.1, 48.0, 47.8, 48.2, 48.5, 48.7]
    assert frame["miou_8k_difference"].to_numpy() == pytest.approx(
        (frame["miou_8k"] - frame["miou_8k_paper"]).to_numpy(), abs=2e-6
    )


def test_writing_again_gives_the_same_bytes(world, params, tmp_path):
    results, pretraining, previews = world[1]

    def contents():
        paths = [results / name for name in report_files(params, previews)]
        return {path.name: path.read_bytes() for path in paths}

    before = contents()
    write_report(params, results, pretraining, previews, results)
    assert contents() == before


def test_a_report_of_one_experiment_has_all_files(params, world, tmp_path):
    source = world[1][0] / "metrics" / "seg-fast.json"
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / source.name).write_bytes(source.read_bytes())
    previews = {"ade20k": tmp_path / "absent.png"}
    write_report(params, tmp_path, tmp_path / "absent", previews, tmp_path)
    assert [name for name in report_files(params, previews) if not (tmp_path / name).is_file()] == []
    text = (tmp_path / "REPORT.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (tmp_path / unquote(link)).is_file(), link
    assert "not run" in text


def test_layout_is_light():
    import subprocess

    code = (
        "import sys, vpd.report.layout; sys.exit(bool({'pandas', 'matplotlib', 'scipy', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------------------------ re-runs and protocols
@pytest.mark.parametrize(
    ("value", "paper", "reruns", "ours", "verdict"),
    [
        (53.9, 53.7, (), False, "reproduced"),
        (52.6, 53.7, (("TADP", 53.1),), False, "as re-run by others"),
        (52.3, 53.7, (("TADP", 53.1),), False, "differs"),
        (53.9, 53.7, (("TADP", 53.1),), False, "reproduced"),
        (53.9, 53.7, (), True, "agrees, protocol: ours"),
        (50.0, 53.7, (), True, "differs, protocol: ours"),
        (50.0, None, (), True, "beyond the paper"),
    ],
)
def test_reruns_and_unpublished_protocols_shape_the_verdict(value, paper, reruns, ours, verdict):
    judge = Judge({("a", "final.x"): ({0: value}, "measured")}, comparable=True)
    cell = judge.cell(("t", "r", "c"), paper, ("a", "final.x"), 0.7, ours=ours, reruns=reruns)
    assert cell.verdict == verdict


def test_what_nobody_published_is_never_called_reproduced(tmp_path):
    """At the paper's scale, with every measurement equal to the paper's number."""
    params = load_params(PARAMS, scale="paper")
    exact = {}
    for name, table in params.tables.items():
        for row in table.rows:
            reported = load_reported()[name].rows[load_reported()[name].matching(row.match)[0]]
            exact |= {
                (row.source(c), r): ({0: reported[c]}, "measured") for c, r in table.columns.items() if c in reported
            }
    frame = pd.DataFrame(
        [(e, 0, *reference.split("."), values[0]) for (e, reference), (values, _) in exact.items()],
        columns=["experiment", "seed", "milestone", "metric", "value"],
    ).assign(provenance="measured", step=0)
    verdicts = {
        (cell.table, cell.row): cell.verdict for cell in all_cells(params, load_reported(), frame) if cell.values
    }
    assert verdicts["table1", "VPD"] == "reproduced"
    assert verdicts["table4", "VPD, default"] == "reproduced"
    assert verdicts["table4", "VPD, 1 epoch"] == "agrees, protocol: ours"
    unpublished = {verdict for (table, _), verdict in verdicts.items() if table in ("table2", "table5")}
    assert unpublished == {"agrees, protocol: ours"}


def test_numbers_of_others_stand_beside_the_papers(world):
    cells = read_cells(world[1][0]).set_index(["table", "row", "column"])
    assert cells.loc[("table1", "VPD", "miou_ss"), "reruns"] == "53.1 (TADP); 53.06 (VPD#43)"
    assert cells.loc[("table4", "VPD, default", "rmse"), "reruns"] == "0.248 (TADP); 0.253 (mmsegmentation)"
    assert "others 53.1, 53.1" in (world[1][0] / "tables/table1.md").read_text()


def test_every_rerun_is_of_a_cell_of_the_paper():
    tables = load_reported()
    for rerun in load_reruns():
        assert len(tables[rerun.table].matching(rerun.match)) == 1
        assert set(rerun.values) <= set(tables[rerun.table].columns)


# ------------------------------------------------------------------------------------------------------ released weights
def test_released_weights_fill_rows_of_their_own_beside_the_readmes_numbers(tmp_path):
    params = load_params(PARAMS, scale="paper")
    results, *inputs = write_results(tmp_path, params, seeds=(0,))
    metrics = {"p50": 85.5, "oiou": 73.41, "miou": 70.0}
    result = {"seed": 0, "milestone": "final", "step": 0, "metrics": metrics}
    content = {"experiment": "refcoco-full", "provenance": "released-weights", "results": [result]}
    (results / "released/metrics").mkdir(parents=True)
    (results / "released/metrics/refcoco-full.json").write_text(json.dumps(content))
    embeddings = {
        "mean": 0.9996,
        "worst": 0.998,
        "worst_class": "door",
        "in_order": 1,
        "by_class": {"wall": 1, "door": 1},
    }
    facts = {"file": "a.pth", "sha256": "ab" * 32, "vae_difference": 0.0, "class_embeddings": embeddings}
    index = {"refcoco-full": facts, "seg-full": {"missing": "the link is dead"}}
    (results / "released/index.json").write_text(json.dumps({"released": index}))
    write_report(params, results, *inputs, results)

    cells = read_cells(results).set_index(["table", "row", "column"])
    released = cells.loc["table3-released", "released weights, RefCOCO"]
    assert list(released.loc["oiou", ["value", "paper", "provenance", "verdict", "experiment"]]) == [
        "73.41", "73.46", "released-weights", "reproduced", "refcoco-full@released"
    ]  # fmt: skip
    assert released.loc["miou", "verdict"] == "differs"
    assert cells.loc["table1-released", "released weights", "miou_ss"]["provenance"] == "missing"
    assert cells.loc["table3", "VPD, default", "refcoco"]["paper"] == "73.25"
    report = (results / "REPORT.md").read_text(encoding="utf-8")
    assert "| `seg-full` | not measured: the link is dead | – | – | – |" in report
    assert "0.9996 / 0.9980 (door); 1 of 2 |" in report


def test_a_scale_without_released_weights_quotes_their_rows(world):
    cells = read_cells(world[1][0])
    rows = cells[cells["table"].str.endswith("-released")]
    assert len(rows) == 2 + 21 + 1
    assert set(rows["provenance"]) == {"quoted"}
