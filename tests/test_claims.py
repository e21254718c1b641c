"""Verdicts of claims and questions on results whose verdict is known."""

from dataclasses import replace

import pytest
import scipy.stats

from report_world import measured
from vpd.config.claims import Claim
from vpd.config.reported import load_reported
from vpd.config.tables import QuestionSpec
from vpd.report.cells import Cell
from vpd.report.claims import Finding, Line, answers, claims_csv, compare, findings, judged, slope, tally
from vpd.report.judge import BEYOND, Judge, question_cells
from vpd.report.paired import Paired
from vpd.report.wording import ranges, signed

REPORTED = load_reported()
HIGH, LOW, BROAD = (31.0, 31.2, 31.1), (20.0, 20.4, 20.3), (35.0, 24.0, 31.0)
NEAR = (31.01, 31.19, 31.11)  # HIGH within a few hundredths
ABOVE = (31.05, 31.24, 31.16)  # HIGH + 0.05 with little spread
PLAN = {"margin": 0.5, "reason": "a test", "noise": 1.0}


# ------------------------------------------------------------------------------------------------------- one comparison
@pytest.mark.parametrize(
    ("first", "second", "metric", "claim", "question"),
    [
        (HIGH, LOW, "miou_ss", "supported", "a is ahead"),
        (LOW, HIGH, "miou_ss", "contradicted", "b is ahead"),
        (LOW, HIGH, "rmse", "supported", "a is ahead"),
        (HIGH, LOW, "rmse", "contradicted", "b is ahead"),
        (HIGH, BROAD, "miou_ss", "inconclusive", "inconclusive"),
        (HIGH, NEAR, "miou_ss", "no difference", "no difference"),
        (HIGH, HIGH, "miou_ss", "no difference", "no difference"),  # a tie without any spread
        (ABOVE, HIGH, "miou_ss", "supported", "a is ahead"),  # within the margin, but direction comes first
        (HIGH, ABOVE, "miou_ss", "contradicted", "b is ahead"),
        ((31.0,), (20.0,), "miou_ss", "inconclusive", "inconclusive"),
        ((31.0, 31.1), (20.0,), "miou_ss", "inconclusive", "inconclusive"),
        ((), (20.0,), "miou_ss", "not run", "not run"),
    ],
)
def test_verdicts_on_known_results_of_a_claim_and_of_a_question(first, second, metric, claim, question):
    """A question has no expected answer."""
    line = compare(measured("a", first, metric), measured("b", second, metric), 1)
    assert judged([line], 0.5)[0].verdict == claim
    asked = QuestionSpec(title="a or b?", metric=f"final.{metric}", first="a", second="b", margin=0.5)
    values = {"a": first, "b": second}
    runs = {(n, asked.metric): (dict(enumerate(seeds)), "measured") for n, seeds in values.items() if seeds}
    cells = question_cells((asked,), Judge(runs, comparable=True))
    assert [(cell.table, cell.row, cell.column) for cell in cells] == [(BEYOND, name, asked.metric) for name in "ab"]
    assert {cell.verdict for cell in cells} <= {"beyond the paper", "not run"}
    (finding,) = answers([asked], cells)
    assert finding.verdict == question
    assert "claimed" not in finding.lines[0].remark


def test_without_a_margin_nothing_is_found_to_be_too_small():
    (line,) = judged([compare(measured("a", HIGH), measured("b", NEAR), 1)], None)
    assert line.verdict == "inconclusive"


def test_a_significant_difference_below_the_margin_says_so():
    (small,) = judged([compare(measured("a", ABOVE), measured("b", HIGH), 1)], 0.5)
    (large,) = judged([compare(measured("a", HIGH), measured("b", LOW), 1)], 0.5)
    assert [small.remark, large.remark] == ["smaller than the smallest difference of interest", ""]


@pytest.mark.parametrize(
    ("better", "metric", "way"),
    [
        (2.0, "miou_ss", "the direction is as claimed"),
        (2.0, "rmse", "the direction is the opposite"),
        (1.0, "rmse", "no difference"),
    ],
)
def test_one_seed_tells_the_direction_and_decides_nothing(better, metric, way):
    (line,) = judged([compare(measured("a", (better,), metric), measured("b", (1.0,), metric), 1)], 0.5)
    assert (line.verdict, line.interval, line.p) == ("inconclusive", None, None)
    assert line.remark == way


def test_a_comparison_reads_as_a_sentence():
    first, second = measured("a", (31.0, 32.0, 33.0), paper=48.0), measured("b", (30.0, 30.0, 30.0), paper=47.1)
    (line,) = judged([compare(first, second, 1)], 0.2)
    assert line.label == "'a' 32.0 ± 1.0 against 'b' 30.0 ± 0.0"
    shown = ["+2.00", "−0.48 to +4.48", "95 %", "0.074", "0.2", "3", "+0.9"]
    assert list(line.texts.values()) == shown  # difference, interval with its level, p, margin, seeds, and the paper's
    assert line.experiments == ("a", "b")
    assert signed(-0.04, 1) == "+0.0"


def test_seeds_without_a_partner_are_named_and_left_out():
    first, second = replace(measured("a", HIGH), seeds=(0, 1, 4)), replace(measured("b", LOW), seeds=(1, 2, 0))
    (line,) = judged([compare(first, second, 1)], 0.5)
    assert line.difference.values == pytest.approx((31.0 - 20.3, 31.2 - 20.0))
    assert line.remark == "without seed 4 of 'a', seed 2 of 'b'"
    assert line.label == "'a' 31.1 ± 0.1 against 'b' 20.1 ± 0.2", "means are those of the seeds that are compared"
    assert line.texts["seeds"] == "2"


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((), ""), ((3,), "3"), ((1, 0), "0, 1"), ((9, 5, 7, 8, 6, 0, 2), "0, 2, 5–9"), (range(8, 24), "8–23")],
)
def test_runs_of_seeds_are_named_by_their_ends(numbers, text):
    assert ranges(numbers) == text


def test_cells_without_a_common_seed_are_not_compared_and_say_so():
    (line,) = judged([compare(measured("a", HIGH), replace(measured("b", LOW), seeds=(7, 8, 9)), 1)], 0.5)
    assert (line.verdict, line.difference) == ("inconclusive", None)
    assert line.remark == "no seed in common, so there is nothing to pair"
    assert line.texts["difference"] == ""


# --------------------------------------------------------------------------------------------- all comparisons of a claim
def test_p_values_of_a_claim_are_corrected_and_its_intervals_agree():
    """One comparison alone is supported (p = 0.034); with two others, which show nothing, it is not."""
    values = [(0.8, 1.5, 1.0), (-1.0, 2.0, 0.5), (0.3, -0.4, 0.2)]
    reference = scipy.stats.ttest_1samp(values[0], 0)
    for lines, verdict in ((values[:1], "supported"), (values, "inconclusive")):
        first, *_ = judged([Line("a", difference=Paired(line)) for line in lines], 0.2)
        assert (first.verdict, first.p) == (verdict, pytest.approx(len(lines) * reference.pvalue))
        assert first.interval == pytest.approx(tuple(reference.confidence_interval(1 - 0.05 / len(lines))))
        assert (first.interval[0] > 0) == (verdict == "supported")


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.05, 0.1, 0.02), "supported"),
        ((-0.05, 0.05, 0.0), "supported"),
        ((0.5, 0.51, 0.52), "contradicted"),
        ((-0.5, -0.51, -0.52), "contradicted"),
        ((0.1, 0.2, 0.3), "inconclusive"),  # the interval crosses the margin
        ((0.1,), "inconclusive"),
    ],
)
def test_rows_that_should_be_alike_are_if_they_differ_by_less_than_the_margin(values, verdict):
    (line,) = judged([Line("a", difference=Paired(values))], 0.2, equal=True)
    assert (line.verdict, line.remark) == (verdict, "")


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [
        ("s s s", "supported"),
        ("s c s", "contradicted"),
        ("s c n i -", "contradicted"),
        ("n n", "no difference"),
        ("s n", "no difference"),
        ("s i", "inconclusive"),
        ("n i", "inconclusive"),
        ("s -", "inconclusive"),
        ("n -", "inconclusive"),
        ("i -", "inconclusive"),
        ("- -", "not run"),
    ],
)
def test_the_verdict_of_a_claim_follows_from_its_comparisons(verdicts, verdict):
    words = {"s": "supported", "c": "contradicted", "n": "no difference", "i": "inconclusive", "-": "not run"}
    for order in (1, -1):
        lines = [Line("", words[letter]) for letter in verdicts.split()[::order]]
        assert Finding("", "", lines).verdict == verdict


def test_verdicts_are_counted_in_their_order():
    verdicts = ("inconclusive", "supported", "inconclusive", "no difference")
    counts = tally(Finding("", "", [Line("", verdict)]) for verdict in verdicts)
    assert counts == [("supported", 1), ("no difference", 1), ("inconclusive", 2)]


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
AHEAD = Claim(title="VPD", table="table2", columns=("miou_ss_8k",), better={"method": "VPD-A32"}, worse=WORSE, **PLAN)


@pytest.mark.parametrize(
    ("others", "verdict"),
    [
        (dict.fromkeys(BASELINES, LOW), "supported"),
        (dict.fromkeys(BASELINES, LOW) | {"SwinV2-L": (35.0, 35.3, 35.1)}, "contradicted"),
        (dict.fromkeys(BASELINES, LOW) | {"SwinV2-L": BROAD}, "inconclusive"),
        (dict.fromkeys(BASELINES, LOW) | {"SwinV2-L": HIGH}, "no difference"),
        (dict.fromkeys(BASELINES, LOW) | {"SwinV2-L": (20.0,)}, "inconclusive"),
        (dict.fromkeys(BASELINES[1:], LOW), "inconclusive"),
        ({}, "not run"),
    ],
)
def test_a_claim_about_each_baseline_needs_all_of_them(others, verdict):
    cells = cells_of("table2", "method", "miou_ss_8k", {"VPD-A32": HIGH} | others)
    (finding,) = findings([AHEAD], REPORTED, cells, {})
    assert (finding.verdict, len(finding.lines), finding.place) == (verdict, 5, "Table 2, mIoU ss 8K")
    assert finding.lines[0].paper_text == "+7.9" or finding.lines[0].verdict == "not run"


def test_claims_csv_has_the_numbers_of_the_report():
    cells = cells_of("table2", "method", "miou_ss_8k", {"VPD-A32": HIGH, "DINO-ViT-B/8": LOW})
    (finding,) = findings([AHEAD], REPORTED, cells, {})
    head, first, second, *_ = claims_csv({"paper": [finding]}).splitlines()
    assert head.split(",")[-9:] == [
        "difference", "low", "high", "confidence", "p_holm", "margin", "paired_seeds", "paper_difference", "remark",
    ]  # fmt: skip
    reference = scipy.stats.ttest_rel(HIGH, LOW)
    low, high = reference.confidence_interval(1 - 0.05 / 5)
    numbers = [10.866667, low, high, 0.99, 5 * reference.pvalue, 0.5, 3, 7.9]
    assert list(map(float, first.split(",")[-9:-1])) == pytest.approx(numbers, abs=2e-6)
    assert second.split(",")[-9:] == ["", "", "", "", "", "0.5", "", "", ""]


# ------------------------------------------------------------------------------------------------------- Figure 3
FIGURE = {"title": "x", "figure": "figure3", **PLAN}


def points(*means):
    """Three seeds around each mean at 0, 100, 200, 400 ... steps."""
    steps = [0, *(100 * 2**power for power in range(len(means) - 1))]
    return [(steps[index], point(index, around(mean) if mean else ())) for index, mean in enumerate(means)]


def point(index, values, metric="miou_8k"):
    return replace(measured(str(index), values, metric), table="figure3", column="miou_8k")


def around(mean, by=0.1):
    """Seeds that do not scatter alike at any two means."""
    return (mean - by, mean + by * (mean % 3) / 3, mean + by)


SLOPE = {"trend": "slope"}
FIRST = {"better": {"point": "3"}, "worse": ({"point": "0"},)}
STEPS = {"order": tuple({"point": name} for name in "3210")}


@pytest.mark.parametrize(
    ("kind", "shown", "verdict"),
    [
        *((kind, points(20, 25, 26, 30)[::-1], "supported") for kind in (SLOPE, FIRST, STEPS)),
        (STEPS, points(20, 25, 24, 30), "contradicted"),  # one falling step
        (STEPS, points(20, 25, 25, 30), "no difference"),  # one flat step
        (STEPS, points(20, 25, None, 30), "inconclusive"),
        (SLOPE, points(20, 25, 24, 30), "supported"),
        (SLOPE, points(20, 25), "not run"),
        (SLOPE, points(None, 25, None), "not run"),
        (SLOPE, [], "not run"),
        (FIRST, points(20, 25, 26), "not run"),
        (SLOPE, [(100, point("a", (3.0,))), (200, point("b", (4.0,)))], "inconclusive"),  # one seed
    ],
)
def test_claims_about_a_figure(kind, shown, verdict):
    claim = Claim.model_validate(FIGURE | kind)
    (finding,) = findings([claim], REPORTED, [cell for _, cell in shown], {"figure3": shown})
    assert (finding.verdict, finding.place) == (verdict, "Figure 3")
    assert len(finding.lines) == claim.comparisons


def test_a_slope_is_per_doubling_and_of_errors_points_down():
    cells = [(0, point("zero", (9.0,))), (100, point("a", (3.0,))), (200, point("b", (4.0,)))]
    assert slope(cells, 1).difference.mean == pytest.approx(1.0)
    errors = [(100 * 2**i, point(i, around(0.5 - 0.1 * i, 0.01), "rmse")) for i in range(3)]
    assert judged([slope(errors, 3)], 0.01)[0].verdict == "supported"


def test_a_slope_needs_a_seed_of_all_points():
    first, second = point("a", (3.0, 5.0)), replace(point("b", (4.0, 7.0)), seeds=(1, 2))
    line = slope([(100, first), (200, second)], 1)
    assert (line.difference.values, line.remark) == (
        (-1.0,),
        "without seed 0 of 'a', seed 2 of 'b'",
    )
    assert slope([(100, first), (200, replace(second, seeds=(3, 4)))], 1).remark.startswith("no seed in common")
