"""The recorded evidence: equal to the digit or named, and the claims rest on the seeds of both."""

import numpy as np
import pandas as pd
import pytest

from evaluated_world import edit_evaluated
from report_world import report_params, write_metrics, write_results
from vpd.config.params import Params
from vpd.config.paths import Paths
from vpd.report import write
from vpd.report.collect import collect
from vpd.report.evidence import compared, joined, read_evidence, values_csv
from vpd.report.report import Report
from vpd.stages.data import PREVIEW
from vpd.stages.keys import is_current, note_made
from vpd.utils.errors import UserError
from vpd.utils.files import read_json, write_json, write_text

HEAD = "experiment,milestone,metric,seed,value\n"


def frame(values, provenance="measured"):
    """Measurements as ``collect`` returns them."""
    lines = [("a", seed, "final", 10, "x", value, provenance) for seed, value in values.items()]
    return pd.DataFrame(lines, columns=["experiment", "seed", "milestone", "step", "metric", "value", "provenance"])


@pytest.fixture
def recorded(tmp_path):
    """A record of seeds 0, 1 and 2."""
    path = tmp_path / "evidence.csv"
    path.write_text(HEAD + "a,final,x,0,0.1\na,final,x,1,0.2\na,final,x,2,0.3\n")
    return read_evidence(path, ["a"])


def test_each_value_is_equal_different_or_on_one_side_only(recorded):
    comparison = compared(frame({0: 0.1 + 4e-8, 1: 0.200001, 3: 0.4}), recorded)
    assert comparison["outcome"].tolist() == ["equal", "different", "only recorded", "only here"]
    union = joined(frame({0: 0.1 + 4e-8, 1: 0.200001, 3: 0.4}), comparison)
    assert dict(zip(union["seed"], union["value"], strict=True)) == {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}


def test_weights_of_others_are_no_evidence_and_stay(recorded):
    others = frame({0: 7.0}, "released-weights").assign(experiment="a@released")
    both = pd.concat([frame({0: 0.1}), others])
    comparison = compared(both, recorded)
    assert set(comparison["experiment"]) == {"a"}
    assert joined(both, comparison)["experiment"].tolist() == ["a", "a", "a", "a@released"]
    assert values_csv(both) == HEAD + "a,final,x,0,0.1\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b\n1,2\n", "has no column 'experiment'"),
        (HEAD + "a,final,x,zero,1.0\n", "has a text in its column 'seed'"),
        (HEAD + "a,final,x,0,1.0\na,final,x,1,\n", "has an empty or infinite value"),
        (HEAD + "a,final,x,0,1.0\na,final,x,0,2.0\n", r"has two values of a for final\.x, seed 0"),
        (HEAD + "ab,final,x,0,1.0\n", "unknown experiment 'ab'; did you mean 'abc'"),
    ],
)
def test_damaged_evidence_is_refused(tmp_path, text, sentence):
    path = tmp_path / "evidence.csv"
    assert read_evidence(path, ["a"]) is None
    path.write_text(text)
    with pytest.raises(UserError, match=sentence) as caught:
        read_evidence(path, ["a", "abc"])
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def params():
    params = report_params()
    figures = {"figure3": params.figures["figure3"]}
    return Params(params.document.model_copy(update={"figures": figures}), params.source)


def test_a_run_of_one_seed_is_judged_with_the_recorded_ones(tmp_path, params, monkeypatch):
    """Three recorded seeds; this run has seed 0 again, and of one experiment another value of it."""
    monkeypatch.setattr(write, "_write_figures", lambda *_: None)  # which take time and are not looked at
    results, *inputs = write_results(tmp_path, params)
    recorded = results / "evidence.csv"
    recorded.write_text(values_csv(collect(results / "metrics", params.experiments)))
    whole = Report(params, results, *inputs, results, None, None)
    for name in params.experiments:
        edit_evaluated(results, name, keep_first_seed)
    write_metrics(results, params.resolve("seg-empty"), np.random.default_rng(1), [0])
    write.write_report(params, results, *inputs, results)
    alone = Report(params, results, *inputs, results, None, None)
    assert [finding.lines for finding in alone.claims] == [finding.lines for finding in whole.claims]
    assert {len(cell.values) for cell in alone.cells if cell.seeds} == {1}
    listed = pd.read_csv(results / "tables/evidence.csv")
    assert set(listed[listed["seed"] > 0]["outcome"]) == {"only recorded"}
    assert set(listed[listed["outcome"] == "different"]["experiment"]) == {"seg-empty"}
    text = (results / "REPORT.md").read_text(encoding="utf-8")
    section = text.partition("## This run and the recorded evidence")[2]
    counts = listed["outcome"].value_counts()
    assert f"| **all** | {counts['equal']} | {counts['different']} | {counts['only recorded']} | 0 |" in section
    assert "| final.aacc_ss, seed 0: " in section
    assert 'id="evidence"' in (results / "report.html").read_text(encoding="utf-8")


def keep_first_seed(content):
    for numbers in (numbers for metrics in content.values() for numbers in metrics.values()):
        for key in numbers.keys() - {"seed0", "mean"}:
            del numbers[key]


REPORT = ("REPORT.md", "report.html", "tables/cells.csv")


def reported(root, params) -> Paths:
    """A scale with a report and its inputs, tracked."""
    paths = Paths(params.scale, root)
    for name in params.datasets:
        write_text(paths.dataset(name) / PREVIEW, "a picture")
    write_json(paths.pretraining / "manifest.json", {"files": {}})
    for path in (*(paths.results / name for name in REPORT), paths.tracked):
        write_text(path, "made")
    return paths


def test_a_new_record_makes_the_report_stale(tmp_path, params):
    paths = reported(tmp_path, params)
    note_made("report", params, paths)
    assert is_current("report", "", params, paths)
    for values in ("a,final,x,0,1.0\n", "a,final,x,0,2.0\n"):
        write_text(paths.evidence, HEAD + values)
        assert not is_current("report", "", params, paths)
        note_made("report", params, paths)
        assert is_current("report", "", params, paths)


READ = ("metrics", "provenance", "history", "timing/train", "panels/seg-fast", "backbones", "released", "specs")


@pytest.mark.parametrize("stage", ["report", "track"])
@pytest.mark.parametrize("folder", READ)
def test_another_result_makes_report_and_tracking_stale(tmp_path, params, stage, folder):
    paths = reported(tmp_path, params)
    for value in ("one", "another"):
        write_text(paths.results / folder / "seg-fast.json", value)
        assert not is_current(stage, "", params, paths)
        note_made(stage, params, paths)
        assert is_current(stage, "", params, paths)
    (paths.results / folder / "seg-fast.json").unlink()
    assert not is_current(stage, "", params, paths)


@pytest.mark.parametrize("name", REPORT)
def test_a_report_without_one_of_its_files_is_stale(tmp_path, params, name):
    paths = reported(tmp_path, params)
    note_made("report", params, paths)
    (paths.results / name).unlink()
    assert not is_current("report", "", params, paths)


def test_results_of_other_settings_are_named(tmp_path, params):
    results, pretraining, previews = write_results(tmp_path, params, seeds=(0,))
    inputs, path = (params, results, pretraining, previews, results, None, None), results / "provenance/seg-fast.json"
    assert Report(*inputs).outdated == []
    made = read_json(path)
    write_json(path, made | {"fingerprint": made["fingerprint"] | {"settings": "0" * 16}})
    assert Report(*inputs).outdated == ["seg-fast"]
