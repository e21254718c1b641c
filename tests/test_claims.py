"""Claims and questions on results whose verdict is known, against scipy and numpy."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from report_world import measured
from vpd.config.reported import Claim, load_claims, load_reported
from vpd.config.tables import QuestionSpec
from vpd.report.cells import Cell
from vpd.report.claims import Finding, answers, compare, difference, findings, rise, slope, trend
from vpd.report.judge import BEYOND, Judge, question_cells
from vpd.report.wording import signed

REPORTED = load_reported()
HIGH, LOW, BROAD = (31.0, 31.2, 31.1), (20.0, 20.4, 20.3), (35.0, 24.0, 31.0)


@pytest.mark.parametrize("sizes", [(3, 3), (2, 5), (8, 4)])
def test_interval_and_effect_equal_the_formulas(sizes):
    """Welch's interval: Student's quantile at the degrees of freedom of Welch and Satterthwaite."""
    generator = np.random.default_rng(sum(sizes))
    a, b = generator.normal(31, 0.4, sizes[0]), generator.normal(30, 1.2, sizes[1])
    shares = [values.var(ddof=1) / len(values) for values in (a, b)]
    freedom = sum(shares) ** 2 / sum(share**2 / (len(v) - 1) for share, v in zip(shares, (a, b), strict=True))
    mean, half = a.mean() - b.mean(), scipy.stats.t.ppf(0.975, freedom) * np.sqrt(sum(shares))
    assert difference(a, b).interval == pytest.approx((mean - half, mean + half), abs=1e-9)
    pooled = np.sqrt((a.var(ddof=1) * (len(a) - 1) + b.var(ddof=1) * (len(b) - 1)) / (len(a) + len(b) - 2))
    assert difference(a, b).effect == pytest.approx(mean / pooled)


def test_one_seed_has_no_interval_and_no_spread_no_effect():
    assert difference([2.0], [1.0, 1.5]).interval is None
    same = difference([2.0, 2.0], [1.0, 1.0])
    assert (same.interval, same.effect, same.significant) == ((1.0, 1.0), None, 1)


def test_slopes_per_doubling_equal_numpy_and_their_interval_the_formula():
    steps = [60, 150, 350, 700, 1300]
    curves = np.random.default_rng(3).normal(20, 1, (4, 5)) + np.arange(5)
    slopes = [np.polyfit(np.log2(steps), curve, 1)[0] for curve in curves]
    change, mean, sd = rise(steps, curves.tolist()), np.mean(slopes), np.std(slopes, ddof=1)
    half = scipy.stats.t.ppf(0.975, 3) * sd / 2
    assert (change.mean, *change.interval) == pytest.approx((mean, mean - half, mean + half))
    assert change.effect == pytest.approx(mean / sd)
    assert rise(steps, curves[:1].tolist()).interval is None
    assert rise([1, 2], [[1.0, 2.0], [1.0, 2.0]]).interval == (1.0, 1.0)


@pytest.mark.parametrize(
    ("first", "second", "metric", "claim", "question"),
    [
        (HIGH, LOW, "miou_ss", "supported", "a is ahead"),
        (LOW, HIGH, "miou_ss", "contradicted", "b is ahead"),
        (LOW, HIGH, "rmse", "supported", "a is ahead"),
        (HIGH, LOW, "rmse", "contradicted", "b is ahead"),
        (HIGH, BROAD, "miou_ss", "inconclusive", "no difference seen"),
        (HIGH, HIGH, "miou_ss", "inconclusive", "no difference seen"),
        ((31.0, 31.0), (31.0, 31.0), "miou_ss", "inconclusive", "no difference seen"),  # a tie without any spread
        ((31.0,), (20.0,), "miou_ss", "inconclusive", "one seed, cannot tell"),
        ((31.0, 31.1), (20.0,), "miou_ss", "inconclusive", "one seed, cannot tell"),
        ((), (20.0,), "miou_ss", "not run", "not run"),
    ],
)
def test_verdicts_on_known_results_of_a_claim_and_of_a_question(first, second, metric, claim, question):
    """A question has no expected answer."""
    assert compare(measured("a", first, metric), measured("b", second, metric), 1).verdict == claim
    asked = QuestionSpec(title="a or b?", metric=f"final.{metric}", first="a", second="b")
    values = {"a": first, "b": second}
    runs = {(n, asked.metric): (dict(enumerate(seeds)), "measured") for n, seeds in values.items() if seeds}
    cells = question_cells((asked,), Judge(runs, comparable=True))
    assert [(cell.table, cell.row, cell.column) for cell in cells] == [(BEYOND, name, asked.metric) for name in "ab"]
    assert {cell.verdict for cell in cells} <= {"beyond the paper", "not run"}
    assert answers([asked], cells)[0].verdict == question


@pytest.mark.parametrize(
    ("better", "metric", "way"),
    [
        (2.0, "miou_ss", "the direction is as claimed"),
        (2.0, "rmse", "the direction is the opposite"),
        (1.0, "rmse", "no difference"),
    ],
)
def test_one_seed_tells_the_direction_and_decides_nothing(better, metric, way):
    line = compare(measured("a", (better,), metric), measured("b", (1.0,), metric), 1)
    assert line.verdict == "inconclusive"
    assert f"(one seed, no interval; {way})" in line.sentence


def test_a_comparison_reads_as_a_sentence():
    line = compare(measured("a", (31.0, 32.0, 33.0), paper=48.0), measured("b", (30.0, 30.0, 30.0), paper=47.1), 1)
    assert line.sentence == (
        "'a' 32.0 ± 1.0 against 'b' 30.0 ± 0.0: +2.00 (95 % interval −0.48 to +4.48, effect size +2.8, 3 and 3 seeds). "
        "The paper's difference is +0.9."
    )
    assert signed(-0.04, 1) == "+0.0"


def cells_of(table, key, column, values):
    """Cells of a table's column from values by ``key`` of the row; rows without values are quoted."""
    cells = []
    for row in REPORTED[table].rows:
        cell = Cell(table, row[key], column, row.get(column))
        seeds = values.get(row[key])
        run = {"provenance": "measured", "metric": column, "values": seeds, "seeds": tuple(range(len(seeds or ())))}
        cells.append(replace(cell, **run) if seeds else cell)
    return cells


BASELINES = ("DINO-ViT-B/8", "MAE-ViT-L/16", "BEiTv2-ViT-L/16", "SwinV2-L", "ConvNeXt-XL")
WORSE = tuple({"method": name} for name in BASELINES)
AHEAD = Claim(title="VPD", table="table2", columns=("miou_ss_8k",), better={"method": "VPD-A32"}, worse=WORSE)


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
    cells = cells_of("table2", "method", "miou_ss_8k", {"VPD-A32": HIGH} | others)
    (finding,) = findings([AHEAD], REPORTED, cells, {})
    assert (finding.verdict, len(finding.lines), finding.place) == (verdict, 5, "Table 2, mIoU ss 8K")
    assert "The paper's difference is +7.9." in finding.lines[0].sentence or finding.lines[0].verdict == "not run"


def test_every_claim_of_the_paper_holds_for_the_paper_s_own_numbers():
    claims = load_claims()
    tables = {claim.table or claim.figure for claim in claims}
    assert tables == {f"table{number}" for number in range(1, 7)} | {"figure3"}
    assert len(next(claim for claim in claims if claim.title.startswith("Each component")).pairs) == 3
    for claim in claims:
        for column in claim.columns:
            table, sign = REPORTED[claim.table], -1 if column == "rmse" else 1
            for pair in claim.pairs:
                better, worse = (table.rows[table.matching(match)[0]][column] for match in pair)
                assert [len(table.matching(match)) for match in pair] == [1, 1], claim.title
                assert sign * (better - worse) > 0, (claim.title, column)


def test_a_claim_is_of_one_kind():
    table, both = (
        {"table": "a", "columns": ["b"], "better": {"a": 1}},
        {"worse": [{"a": 2}], "order": [{"a": 1}, {"a": 2}]},
    )
    for fields in ({}, table, table | both, {"figure": "figure3"}, {"figure": "figure3", "trend": "rises"}):
        with pytest.raises(ValueError, match=r"claim 'x' needs a table|Input should be"):
            Claim.model_validate({"title": "x"} | fields)


def points(*means):
    """Three seeds around each mean at 0, 100, 200, 400 ... steps."""
    steps = [0, *(100 * 2**power for power in range(len(means) - 1))]
    cells = [measured(str(index), around(mean) if mean else ()) for index, mean in enumerate(means)]
    return list(zip(steps, cells, strict=True))


def around(mean, by=0.1):
    return (mean - by, mean, mean + by)


@pytest.mark.parametrize(
    ("kind", "shown", "verdict"),
    [
        *((kind, points(20, 25, 26, 30)[::-1], "supported") for kind in ("untrained", "longer", "slope", "steps")),
        ("steps", points(20, 25, 24, 30), "contradicted"),  # one falling step
        ("slope", points(20, 25, 24, 30), "supported"),
        ("slope", points(20, 25), "not run"),
        ("untrained", points(20, 25, 26)[1:], "not run"),
        ("longer", [], "not run"),
        ("slope", points(None, 25, None), "not run"),
        ("slope", [(100, measured("a", (3.0,))), (200, measured("b", (4.0,)))], "inconclusive"),  # one seed
    ],
)
def test_trends(kind, shown, verdict):
    assert Finding("", "", trend(kind, shown, 1)).verdict == verdict


def test_a_slope_is_per_doubling_and_of_errors_points_down():
    cells = [(100, measured("a", (3.0,))), (200, measured("b", (4.0,)))]
    assert slope(cells, 1).difference.mean == pytest.approx(1.0)
    errors = [(100 * 2**i, measured(str(i), around(0.5 - 0.1 * i, 0.01), "rmse")) for i in range(3)]
    assert slope(errors, 3).verdict == "supported"
