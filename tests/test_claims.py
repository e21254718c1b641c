"""Claims and questions on results whose verdict is known, against scipy and numpy."""

import csv
import io

import numpy as np
import pytest
import scipy.stats

from report_world import measured
from vpd.config.reported import Claim, load_claims, load_reported
from vpd.config.tables import QuestionSpec
from vpd.report.cells import Cell
from vpd.report.claims import (
    NO_DIFFERENCE,
    ONE_SEED,
    Finding,
    Line,
    answers,
    claims_csv,
    compare,
    difference,
    findings,
    rise,
    slope,
    trend,
)
from vpd.report.judge import BEYOND, Judge, question_cells
from vpd.report.wording import signed

REPORTED = load_reported()
HIGH, LOW, BROAD = (31.0, 31.2, 31.1), (20.0, 20.4, 20.3), (35.0, 24.0, 31.0)


# ----------------------------------------------------------------------------------------------------------- statistics
def welch(a, b, level=0.95):
    """Welch's interval from its formula: Student's quantile at the degrees of freedom of Welch and Satterthwaite."""
    shares = [np.var(values, ddof=1) / len(values) for values in (a, b)]
    freedom = sum(shares) ** 2 / sum(share**2 / (len(v) - 1) for share, v in zip(shares, (a, b), strict=True))
    half = scipy.stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(sum(shares))
    return np.mean(a) - np.mean(b) - half, np.mean(a) - np.mean(b) + half


@pytest.mark.parametrize("sizes", [(3, 3), (2, 5), (8, 4)])
def test_interval_and_effect_equal_the_formulas(sizes):
    generator = np.random.default_rng(sum(sizes))
    a, b = generator.normal(31, 0.4, sizes[0]), generator.normal(30, 1.2, sizes[1])
    found = difference(a, b)
    assert found.interval == pytest.approx(welch(a, b), abs=1e-9)
    pooled = np.sqrt((a.var(ddof=1) * (len(a) - 1) + b.var(ddof=1) * (len(b) - 1)) / (len(a) + len(b) - 2))
    assert found.effect == pytest.approx((a.mean() - b.mean()) / pooled)


def test_one_seed_has_no_interval_and_no_spread_no_effect():
    assert difference([2.0], [1.0, 1.5]).interval is None
    same = difference([2.0, 2.0], [1.0, 1.0])
    assert (same.interval, same.effect, same.significant) == ((1.0, 1.0), None, 1)


def test_slopes_per_doubling_equal_numpy_and_their_interval_the_formula():
    steps = [60, 150, 350, 700, 1300]
    curves = np.random.default_rng(3).normal(20, 1, (4, 5)) + np.arange(5)
    slopes = [np.polyfit(np.log2(steps), curve, 1)[0] for curve in curves]
    found, sd = rise(steps, curves.tolist()), np.std(slopes, ddof=1)
    half = scipy.stats.t.ppf(0.975, 3) * sd / 2
    ends = (np.mean(slopes) - half, np.mean(slopes) + half)
    assert (found.mean, *found.interval) == pytest.approx((np.mean(slopes), *ends))
    assert found.effect == pytest.approx(np.mean(slopes) / sd)
    assert rise(steps, curves[:1].tolist()).interval is None
    assert rise([1, 2], [[1.0, 2.0], [1.0, 2.0]]).interval == (1.0, 1.0)


# ---------------------------------------------------------------------------------------------------------- comparisons
@pytest.mark.parametrize(
    ("better", "worse", "metric", "verdict"),
    [
        (HIGH, LOW, "miou_ss", "supported"),
        (LOW, HIGH, "miou_ss", "contradicted"),
        (LOW, HIGH, "rmse", "supported"),
        (HIGH, LOW, "rmse", "contradicted"),
        (HIGH, BROAD, "miou_ss", "inconclusive"),
        (HIGH, HIGH, "miou_ss", "inconclusive"),
        ((31.0, 31.0), (31.0, 31.0), "miou_ss", "inconclusive"),  # a tie without any spread
        ((31.0,), (20.0,), "miou_ss", "inconclusive"),
        ((31.0, 31.1), (20.0,), "miou_ss", "inconclusive"),
        ((), (20.0,), "miou_ss", "not run"),
    ],
)
def test_verdicts_on_known_results(better, worse, metric, verdict):
    assert compare(measured("a", better, metric), measured("b", worse, metric), 1).verdict == verdict


@pytest.mark.parametrize(
    ("better", "worse", "metric", "way"),
    [
        (2.0, 1.0, "miou_ss", "the direction is as claimed"),
        (2.0, 1.0, "rmse", "the direction is the opposite"),
        (1.0, 1.0, "rmse", "no difference"),
    ],
)
def test_one_seed_tells_the_direction_and_decides_nothing(better, worse, metric, way):
    line = compare(measured("a", (better,), metric), measured("b", (worse,), metric), 1)
    assert line.verdict == "inconclusive"
    assert f"(one seed, no interval; {way})" in line.sentence


def test_a_comparison_reads_as_a_sentence():
    line = compare(measured("a", (31.0, 32.0, 33.0), paper=48.0), measured("b", (30.0, 30.0, 30.0), paper=47.1), 1)
    assert line.sentence == (
        "'a' 32.0 ± 1.0 against 'b' 30.0 ± 0.0: +2.00 (95 % interval −0.48 to +4.48, effect size +2.8, 3 and 3 seeds). "
        "The paper's difference is +0.9."
    )
    assert signed(-0.04, 1) == "+0.0"


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [
        (["supported", "supported"], "supported"),
        (["supported", "inconclusive"], "inconclusive"),
        (["supported", "not run"], "inconclusive"),
        (["supported", "contradicted", "not run"], "contradicted"),
        (["not run", "not run"], "not run"),
    ],
)
def test_several_comparisons_make_one_verdict(verdicts, verdict):
    assert Finding("", "", [Line("", each) for each in verdicts]).verdict == verdict


# --------------------------------------------------------------------------------------------------------------- claims
def table2(values):
    """Cells of Table 2's last column from values by method; methods without values are quoted."""
    return [
        Cell("table2", row["method"], "miou_ss_8k", row["miou_ss_8k"])
        if row["method"] not in values
        else Cell(
            "table2", row["method"], "miou_ss_8k", row["miou_ss_8k"], "measured", "miniature", "e", "miou_ss",
            tuple(range(len(values[row["method"]]))), values[row["method"]],
        )
        for row in REPORTED["table2"].rows
    ]  # fmt: skip


BASELINES = ("DINO-ViT-B/8", "MAE-ViT-L/16", "BEiTv2-ViT-L/16", "SwinV2-L", "ConvNeXt-XL")
AHEAD = Claim(
    title="VPD is ahead of each baseline",
    table="table2",
    columns=("miou_ss_8k",),
    better={"method": "VPD-A32"},
    worse=tuple({"method": name} for name in BASELINES),
)


@pytest.mark.parametrize(
    ("others", "verdict"),
    [
        (dict.fromkeys(BASELINES, LOW), "supported"),
        (dict.fromkeys(BASELINES, LOW) | {"SwinV2-L": (35.0, 35.1, 35.2)}, "contradicted"),
        (dict.fromkeys(BASELINES, LOW) | {"SwinV2-L": BROAD}, "inconclusive"),
        (dict.fromkeys(BASELINES, LOW) | {"SwinV2-L": (20.0,)}, "inconclusive"),
        (dict.fromkeys(BASELINES[1:], LOW), "inconclusive"),
        ({}, "not run"),
    ],
)
def test_a_claim_about_each_baseline_needs_all_of_them(others, verdict):
    (found,) = findings([AHEAD], REPORTED, table2({"VPD-A32": HIGH} | others), {})
    assert (found.verdict, len(found.lines), found.place) == (verdict, 5, "Table 2, mIoU ss 8K")
    assert "The paper's difference is +7.9." in found.lines[0].sentence or found.lines[0].verdict == "not run"


def test_an_order_is_a_chain_of_comparisons():
    order = Claim.model_validate(
        {
            "title": "x",
            "table": "table6",
            "columns": ["rmse"],
            "order": [{"backbone": b} for b in ("SD-1-5", "SAM", "BLIP")],
        }
    )
    values = {"SD-1-5": (0.25, 0.251), "SAM": (0.31, 0.311), "BLIP": (0.36, 0.361)}
    cells = [Cell("table6", b, "rmse", None, "measured", "", b, "rmse", (0, 1), v) for b, v in values.items()]
    (found,) = findings([order], REPORTED, cells, {})
    assert found.verdict == "supported"
    assert [line.label.split("'")[1::2] for line in found.lines] == [["SD-1-5", "SAM"], ["SAM", "BLIP"]]


def test_every_claim_of_the_paper_holds_for_the_paper_s_own_numbers():
    for claim in load_claims():
        for column in claim.columns:
            table = REPORTED[claim.table]
            sign = -1 if column == "rmse" else 1
            for pair in claim.pairs:
                better, worse = (table.rows[table.matching(match)[0]][column] for match in pair)
                assert [len(table.matching(match)) for match in pair] == [1, 1], claim.title
                assert sign * (better - worse) > 0, (claim.title, column)


def test_the_issue_s_claims_are_all_there():
    tables = [claim.table or claim.figure for claim in load_claims()]
    assert {f"table{number}" for number in range(1, 7)} | {"figure3"} == set(tables)
    components = next(claim for claim in load_claims() if claim.title.startswith("Each component"))
    assert len(components.pairs) == 3


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"table": "table5", "columns": ["miou_8k"]},
        {"table": "table5", "columns": ["miou_8k"], "better": {"a": 1}},
        {
            "table": "table5",
            "columns": ["miou_8k"],
            "better": {"a": 1},
            "worse": [{"a": 2}],
            "order": [{"a": 1}, {"a": 2}],
        },
        {"figure": "figure3"},
        {"figure": "figure3", "trend": "rises"},
    ],
)
def test_a_claim_is_of_one_kind(fields):
    with pytest.raises(ValueError, match=r"claim 'x' needs a table|Input should be"):
        Claim.model_validate({"title": "x"} | fields)


# --------------------------------------------------------------------------------------------------------------- trends
def points(**values):
    """Points at 0, 100, 200, 400 ... steps."""
    steps = [0, *(100 * 2**power for power in range(len(values) - 1))]
    return [(step, measured(name, seeds)) for step, (name, seeds) in zip(steps, values.items(), strict=True)]


def around(mean, by=0.1):
    return (mean - by, mean, mean + by)


def verdict(kind, shown):
    return Finding("", "", trend(kind, shown, 1)).verdict


def test_trend_claims_on_a_rising_curve():
    rising = points(zero=around(20), one=around(25), two=around(26), three=around(30))[::-1]
    found = {kind: verdict(kind, rising) for kind in ("untrained", "longer", "slope", "steps")}
    assert set(found.values()) == {"supported"}


def test_one_falling_step_contradicts_every_step_and_not_the_slope():
    shown = points(zero=around(20), one=around(25), two=around(24), three=around(30))
    assert verdict("steps", shown) == "contradicted"
    assert verdict("slope", shown) == "supported"
    lines = trend("steps", shown, 1)
    assert [line.verdict for line in lines] == ["supported", "contradicted", "supported"]
    assert lines[1].label == "'two' 24.0 ± 0.1 against 'one' 25.0 ± 0.1"


def test_trends_without_enough_points_are_not_run():
    assert verdict("slope", points(zero=around(20), one=around(25))) == "not run"
    assert verdict("untrained", points(zero=around(20), one=around(25), two=around(26))[1:]) == "not run"
    assert verdict("longer", []) == "not run"
    assert verdict("slope", points(zero=(), one=around(25), two=())) == "not run"


def test_a_slope_of_one_seed_decides_nothing_and_of_errors_points_down():
    cells = [(100, measured("a", (3.0,))), (200, measured("b", (4.0,)))]
    assert slope(cells, 1).verdict == "inconclusive"
    assert slope(cells, 1).difference.mean == pytest.approx(1.0)
    errors = [(100 * 2**i, measured(str(i), around(0.5 - 0.1 * i, 0.01), "rmse")) for i in range(3)]
    assert slope(errors, 3).verdict == "supported"


# ------------------------------------------------------------------------------------------------------------ questions
@pytest.mark.parametrize(
    ("first", "second", "metric", "verdict"),
    [
        (HIGH, LOW, "miou_ss", "a is ahead"),
        (LOW, HIGH, "miou_ss", "b is ahead"),
        (LOW, HIGH, "rmse", "a is ahead"),
        (HIGH, BROAD, "miou_ss", NO_DIFFERENCE),
        (HIGH, HIGH, "miou_ss", NO_DIFFERENCE),
        ((31.0,), (20.0,), "miou_ss", ONE_SEED),
        ((), (20.0,), "miou_ss", "not run"),
    ],
)
def test_questions_have_no_expected_answer(first, second, metric, verdict):
    asked = QuestionSpec(title="a or b?", metric=f"final.{metric}", first="a", second="b")
    runs = {
        (name, asked.metric): (dict(enumerate(values)), "measured")
        for name, values in (("a", first), ("b", second))
        if values
    }
    cells = list(question_cells((asked,), Judge(runs, comparable=True)))
    assert [(cell.table, cell.row, cell.column) for cell in cells] == [(BEYOND, name, asked.metric) for name in "ab"]
    (found,) = answers([asked], cells)
    assert found.verdict == verdict
    assert {cell.verdict for cell in cells} <= {"beyond the paper", "not run"}


def test_claims_as_csv_have_a_line_per_comparison():
    found = findings([AHEAD], REPORTED, table2(dict.fromkeys(("VPD-A32", *BASELINES), HIGH)), {})
    lines = list(csv.DictReader(io.StringIO(claims_csv({"paper": found}))))
    assert len(lines) == 5
    assert (lines[0]["verdict"], lines[0]["difference"], lines[0]["paper_difference"]) == ("inconclusive", "0", "7.9")
    assert float(lines[0]["low"]) == -float(lines[0]["high"])
