"""The plan of the claims: faithful to the paper's numbers, and every mistake in it is one sentence."""

from pathlib import Path

import pytest
import yaml

from vpd.cli import main
from vpd.config import claims as plan
from vpd.config.claims import CLAIMS, check_claims, load_claims
from vpd.config.params import load_params
from vpd.config.reported import load_reported
from vpd.utils.errors import UserError

REPORTED = load_reported()
PARAMS = load_params(Path(__file__).parents[1] / "params.yaml", scale="mini")


def printed(claim):
    """The paper's differences, positive in the direction of the claim."""
    sign = -1 if "rmse" in claim.columns else 1
    for column in claim.columns:
        for pair in claim.pairs:
            first, second = (REPORTED[claim.table].rows[REPORTED[claim.table].matching(row)[0]] for row in pair)
            yield round(sign * (first[column] - second[column]), 6)


def test_every_claim_holds_for_the_paper_s_own_numbers_and_no_margin_hides_them():
    """A claim that rows are alike holds within its margin, and no other margin is larger than what the paper prints."""
    for claim in load_claims():
        for difference in printed(claim):
            if claim.equal:
                assert abs(difference) < claim.margin, claim.title
            else:
                assert difference >= claim.margin > 0, claim.title


def test_the_plan_covers_the_paper_and_every_step_of_table_5():
    """Each row of Table 5 against the one before, at 4K and at 8K."""
    claims = load_claims()
    assert {claim.source for claim in claims} == {f"table{number}" for number in range(1, 7)} | {"figure3"}
    assert len({claim.title for claim in claims}) == len(claims)
    table = REPORTED["table5"]
    steps = {
        (frozenset(table.matching(row)[0] for row in pair), column)
        for claim in claims
        if claim.table == "table5"
        for pair in claim.pairs
        for column in claim.columns
    }
    wanted = {(frozenset((row - 1, row)), column) for row in range(1, 7) for column in table.columns}
    assert wanted <= steps


def test_the_points_of_figure_3_are_compared_in_the_order_of_pre_training():
    (claim,) = [claim for claim in load_claims() if claim.title == "Figure 3 rises at every step"]
    assert [row["point"] for row in reversed(claim.order)] == list(PARAMS.figures["figure3"].points)
    assert claim.comparisons == 5


GOOD = {
    "title": "x", "table": "table5", "columns": ["miou_8k"], "better": {"cross_attn": "up"}, "worse": [{"cross_attn": "mid"}],
    "margin": 0.2, "reason": "a", "noise": 0.1,
}  # fmt: skip
POINTS = {"table": None, "columns": [], "figure": "figure3"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"margin": -0.2}, "'x': margin: input should be greater than 0, found -0.2; correct it"),
        ({"margin": 0}, "'x': margin: input should be greater than 0, found 0; correct it"),
        ({"margin": None}, "'x': margin: input should be a valid number, found None; correct it"),
        ({"noise": -1}, "'x': noise: input should be greater than 0, found -1; correct it"),
        ({"margins": 1}, "'x': margins is not a known key; did you mean 'margin'?"),
        ({"table": "table7"}, "'x': unknown table 'table7'; did you mean 'table6'?"),
        ({"columns": ["miou_9k"]}, "'x': columns: unknown column 'miou_9k'; did you mean 'miou_8k'?"),
        ({"better": {"cross_attn": "top"}}, "'x': no row of the paper has cross_attn=top; did you mean 'cross_attn=up'?"),
        ({"worse": [{"cross_atn": "up"}]}, "'x': unknown key of a row 'cross_atn'; did you mean 'cross_attn'?"),
        ({"worse": [{"cross_attn": "none"}]}, "'x': matches 3 rows of the paper"),
        (POINTS | {"figure": "figure9", "better": {"point": "a"}, "worse": [{"point": "b"}]}, "unknown figure 'figure9'"),
        (POINTS | {"better": {"point": "sd-1-5"}, "worse": [{"point": "sd-1-9"}]}, "'x': figure3: unknown point 'sd-1-9'"),
        (POINTS, "'x': selects points of a figure by the key 'point' alone; correct it"),
        ({"worse": []}, "'x': needs a table with columns or a figure, and one of better and worse, order"),
        ({"trend": "slope", "better": None, "worse": []}, "'x': needs a table with columns or a figure"),
        ({"trend": "slope"}, "'x': needs a table with columns or a figure, and one of better and worse, order"),
        ({"columns": []}, "'x': needs a table with columns or a figure"),
        ({"figure": "figure3", "trend": "falls"}, "'x': trend: input should be 'slope', found 'falls'; correct it"),
    ],
)  # fmt: skip
def test_mistakes_in_the_plan_are_one_sentence(tmp_path, change, sentence):
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump([GOOD | change]))
    with pytest.raises(UserError) as caught:
        check_claims(load_claims(path), REPORTED, PARAMS.figures, path)
    assert str(caught.value).startswith(f"{path}, '")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_and_a_file_that_is_no_list_are_named(tmp_path):
    path = tmp_path / "claims.yaml"
    for text, sentence in (
        ("- {title: x, margin: 1, noise: 1}", "'x': reason is missing; add it"),
        ("- {table: table5}", "title is missing; add it"),
        ("a: 1", "holds dict instead of a list of claims"),
        ("- {a: [}", "is not valid YAML"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=sentence):
            load_claims(path)


def test_the_report_stops_at_a_mistake_in_the_plan(tmp_path, monkeypatch, capsys):
    path = tmp_path / "claims.yaml"
    path.write_text(CLAIMS.read_text(encoding="utf-8").replace("margin: 0.8", "margin: -0.8"), encoding="utf-8")
    monkeypatch.setattr(plan, "CLAIMS", path)
    assert main(["report", "--params", str(PARAMS.source), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "claims.yaml, 'Larger attention maps (A64) are ahead early': margin: input should be greater than 0" in error
    assert not (tmp_path / "out").exists()
