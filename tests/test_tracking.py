"""The MLflow store shows exactly the finished results, whatever happened before: repetition, kills, dead servers."""

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from evaluated_world import DAMAGED_METRICS, TIMING, edit_evaluated
from forked import status_of
from tracking_world import SEEDS, STEPS, free_port, miou, mlflow_server, table5, write_results
from vpd.cli import main
from vpd.config.params import Params, load_params
from vpd.tracking import Live, Summary, compare_links, shown, sync, ui_command
from vpd.tracking.records import flatten, metric_name, table_tags
from vpd.tracking.store import _reason
from vpd.tracking.sync import compare_url
from vpd.utils.errors import UserError

RUNS = 7 * len(SEEDS) + 1  # and the report
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tracking_world import table5
from vpd.tracking import sync
results = Path({results!r})
print(sync(results, table5(), {uri!r}, results.parent / "data", results.parent / "checkpoints").as_dict())
"""


@pytest.fixture(scope="module")
def params() -> Params:
    return table5()


@pytest.fixture
def results(tmp_path: Path, params) -> Path:
    return write_results(tmp_path / "results", params)


def track(results: Path, params: Params, uri: str, strict: bool = True) -> Summary:
    """Synchronise a folder that has datasets and checkpoints beside it."""
    return sync(results, params, uri, results.parent / "data", results.parent / "checkpoints", strict=strict)


def shown_runs(uri: str) -> dict[str, list]:
    """All runs that the UI would list, by name."""
    client, runs = MlflowClient(uri), {}
    for run in client.search_runs([client.get_experiment_by_name("vpd-mini").experiment_id], max_results=1000):
        runs.setdefault(run.info.run_name, []).append(run)
    return runs


def assert_complete(uri: str, params: Params) -> None:
    """Every run once, finished, with all its points."""
    runs = shown_runs(uri)
    assert set(runs) == {f"{name}/seed{seed}" for name in params.experiments for seed in SEEDS} | {"report"}
    assert [len(same) for same in runs.values()] == [1] * RUNS
    assert {run.info.status for (run,) in runs.values()} == {"FINISHED"}
    (last,) = runs["seg-fast/seed2"]
    assert last.data.metrics["final/miou_ss"] == miou(params, "seg-fast", 2, "final")
    assert len(MlflowClient(uri).get_metric_history(last.info.run_id, "train/loss")) == len(STEPS)


def start(results: Path, uri: str) -> subprocess.Popen:
    script = SCRIPT.format(tests=str(Path(__file__).parent), results=str(results), uri=uri)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# ------------------------------------------------------------------------------------------------------------ contents
def test_a_run_shows_spec_curves_final_metrics_tags_and_panels(results, uri, params):
    summary = track(results, params, uri)
    assert (summary.added, summary.missed, summary.unfinished) == (RUNS, 0, 0)
    assert_complete(uri, params)
    client, (run,) = MlflowClient(uri), shown_runs(uri)["seg-mid/seed0"]
    spec = params.resolve("seg-mid")

    assert run.data.params["model.attention.places"] == "mid"
    assert run.data.params["training.optimizer.betas"] == "0.9, 0.999"
    assert float(run.data.params["training.optimizer.lr"]) == spec.training.optimizer.lr
    assert max(map(len, run.data.params.values())) <= 500

    rows = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert rows == [(step, pytest.approx(3 / step)) for step in STEPS]
    finals = [miou(params, "seg-mid", seed, "final") for seed in SEEDS]
    assert run.data.metrics["final/miou_ss"] == finals[0]
    assert run.data.metrics["final/miou_ss_mean"] == pytest.approx(sum(finals) / 3)
    assert run.data.metrics["final/miou_ss_sd"] == pytest.approx(statistics.stdev(finals))
    assert run.data.metrics["half/miou_ss"] == miou(params, "seg-mid", 0, "half")
    (half,) = client.get_metric_history(run.info.run_id, "half/miou_ss")
    assert half.step == 80

    tags = {"table": "table5", "row": "table5: + mid attention", "table5": "+ mid attention", "scale": "mini"}
    tags |= {"tables": "table5", "method": "vpd", "backbone": "sd-1-5"}
    tags |= {"task": "segmentation", "protocol": "official", "seed": "0", "git_commit": TIMING["commit"]}
    tags |= {"data_digest": "d1", "checkpoint_digest": "c1", "vpd.key": "mini/official/seg-mid/seed0"}
    assert tags.items() <= run.data.tags.items()
    assert (run.info.start_time, run.info.end_time) == (1_700_000_000_000, 1_700_000_090_500)

    panel = client.download_artifacts(run.info.run_id, "panels/predictions.png")
    assert Path(panel).read_bytes() == (results / "panels/seg-mid/predictions.png").read_bytes()
    (other,) = shown_runs(uri)["seg-mid/seed1"]
    assert not client.list_artifacts(other.info.run_id, "panels")


def test_results_of_settings_that_were_edited_since_are_unfinished(results, uri, params):
    """The spec beside the metrics is that of the run; what params.yaml says now is another."""
    lines = params.document.experiments
    edited = {name: line.model_copy(update={"training": {"optimizer": {"lr": 7e-5}}}) for name, line in lines.items()}
    edited = {name: edited[name] if name == "seg-mid" else line for name, line in lines.items()}
    summary = track(results, Params(params.document.model_copy(update={"experiments": edited}), params.source), uri)
    assert (summary.added, summary.unfinished) == (RUNS - len(SEEDS), 1)
    assert not [name for name in shown_runs(uri) if name.startswith("seg-mid")]


def test_the_report_is_a_run_with_files_and_measured_cells(results, uri):
    track(results, table5(experiments=1), uri)
    client, (run,) = MlflowClient(uri), shown_runs(uri)["report"]
    assert run.data.metrics == {"table5/plus mid attention/miou_8k": 33.25}
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["REPORT.md", "figures", "tables"]


def test_the_commit_is_recorded_and_a_dataset_with_other_content_replaces_the_run(results, uri):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(results)]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    file = results / "provenance/seg-empty.json"
    for data, kept in (("d1", 0), ("d1", 4), ("d2", 1)):  # the report is kept
        file.write_text(file.read_text().replace('"d1"', f'"{data}"'))
        assert track(results, table5(experiments=1), uri).kept == kept
        tags = shown_runs(uri)["seg-empty/seed0"][0].data.tags
        assert (tags["data_digest"], tags["git_commit"]) == (data, TIMING["commit"])
    assert shown_runs(uri)["report"][0].data.tags["git_commit"] == commit


def test_an_experiment_counts_as_finished_only_with_metrics_of_its_present_spec(results, uri):
    (results / "metrics/seg-empty.json").unlink()
    spec = json.loads((results / "specs/seg-prompt.json").read_text())
    spec["training"]["steps"] = 999
    (results / "specs/seg-prompt.json").write_text(json.dumps(spec))
    summary = track(results, table5(experiments=3), uri)
    assert "2 experiments have no final results yet" in str(summary)
    assert set(shown_runs(uri)) == {"report", *(f"seg-adapter/seed{seed}" for seed in SEEDS)}


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("provenance/seg-mid.json", ('"seed0"', '"seed"'), "seg-mid.json: runs.seed: string should match pattern"),
        ("provenance/seg-mid.json", ('"seed0"', '"seed9"'), "seg-mid.json: unknown run 'seed0'"),
        ("provenance/seg-mid.json", ('"ended"', '"end"'), "seg-mid.json: runs.seed0.timing.ended is missing"),
        ("provenance/seg-mid.json", ('"code": "', '"code": ["'), "seg-mid.json is not valid JSON"),
        ("provenance/seg-mid.json", "{}", "seg-mid.json: spec is missing"),
        ("provenance/seg-mid.json", "{", "seg-mid.json is not valid JSON"),
        *(("metrics/seg-mid.json", text, said) for text, said in DAMAGED_METRICS),
        ("history/seg-mid.csv", "seed,step,loss\n0,5,abc\n", "seg-mid.csv is damaged"),
    ],
)
def test_a_damaged_file_is_named_in_one_sentence(results, uri, params, file, text, said):
    given = (results / file).read_text().replace(*text) if isinstance(text, tuple) else text
    (results / file).write_text(given)
    with pytest.raises(UserError, match=said):
        track(results, params, uri)


def test_names_and_values_fit_mlflow():
    value = {"a": {"b": [1, 2.5], "c": None, "d": True, "e": []}, "f": "x" * 600, "g": [{"h": 1}]}
    flat = flatten(value)
    assert flat.pop("f") == "x" * 499 + "…"
    assert flat == {"a.b": "1, 2.5", "a.c": "null", "a.d": "true", "a.e": "none", "g": '{"h": 1}'}
    assert metric_name("refcoco+") == "refcocoplus"
    assert metric_name("+ up (a/b)") == "plus up -a-b-"


def test_tags_name_the_tables_and_rows_that_show_a_run():
    params = load_params(Path(__file__).parents[1] / "params.yaml", "paper")
    tags = table_tags(params, "seg-full")
    first = tags["table"]
    assert first == tags["tables"].split(", ")[0]
    assert any("seg-full" in row.trained.values() for row in params.tables[first].rows)
    assert tags["row"].startswith(f"{first}: {tags[first]}")
    assert table_tags(params, "not in any table") == {}
    # Rows of released weights do not show a run of this project.
    assert table_tags(params, "refcoco-full").keys() == {"table", "tables", "row", "table3"}


# ---------------------------------------------------------------------------------------------------------- repetition
def test_a_second_sync_keeps_every_run_and_every_row(results, uri, params):
    track(results, params, uri)
    first = shown_runs(uri)
    summary = track(results, params, uri)
    second = shown_runs(uri)
    assert (summary.kept, summary.added, summary.replaced) == (RUNS, 0, 0)
    assert {name: run.info.run_id for name, (run,) in second.items()} == {n: r.info.run_id for n, (r,) in first.items()}
    assert_complete(uri, params)


def test_new_results_replace_the_runs_of_their_experiment_alone(results, uri, params):
    track(results, params, uri)
    before = {name: run.info.run_id for name, (run,) in shown_runs(uri).items()}
    edit_evaluated(results, "seg-down", lambda metrics: metrics["final"]["miou_ss"].update(seed0=77.5))
    summary = track(results, params, uri)
    after = {name: run.info.run_id for name, (run,) in shown_runs(uri).items()}
    assert (summary.replaced, summary.kept, summary.added) == (len(SEEDS), RUNS - len(SEEDS), 0)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"seg-down/seed{seed}" for seed in SEEDS}  # their means and deviations changed too
    assert shown_runs(uri)["seg-down/seed0"][0].data.metrics["final/miou_ss"] == 77.5
    assert_complete(uri, params)


def test_after_a_kill_in_the_middle_a_sync_completes_without_duplicates(results, uri, params):
    log_artifact, calls = MlflowClient.log_artifact, []

    def killed_in_a_run() -> None:
        def log(*given):
            calls.append(given)
            if len(calls) == 10:
                os.kill(os.getpid(), signal.SIGKILL)
            log_artifact(*given)

        MlflowClient.log_artifact = log
        track(results, params, uri)

    assert status_of(killed_in_a_run) == -signal.SIGKILL
    statuses = [run.info.status for runs in shown_runs(uri).values() for run in runs]
    assert statuses.count("RUNNING") == 1
    finished = statuses.count("FINISHED")
    assert 0 < finished < RUNS
    summary = track(results, params, uri)
    assert (summary.kept, summary.replaced, summary.added) == (finished, 1, RUNS - finished - 1)
    assert_complete(uri, params)


def test_processes_that_start_at_once_share_one_new_database(results, tmp_path, params):
    new = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    processes = [start(results, new) for _ in range(2)]
    for process in processes:
        said, failed = process.communicate()
        assert process.returncode == 0, failed
        assert said == f"{{'experiment': 'vpd-mini', 'runs': {RUNS}, 'missed': 0, 'unfinished': 0, 'models': 0}}\n"
    assert_complete(new, params)


# --------------------------------------------------------------------------------------------------------- dead servers
NOWHERE = ("mlruns", "htp://localhost", "sqlite:///", "postgresql://me:se/cret@host/db", "http://[::1", "http://[", "http://a:b",
           "http://a:99999", "postgresql://[::1/db", "http://[x]/?token=cret", "", ":", "sqlite:///:memory:")  # fmt: skip


@pytest.mark.parametrize("uri", NOWHERE)
def test_a_uri_that_names_no_store_is_refused(results, params, uri):
    with pytest.raises(
        UserError, match=r"names no (store|file)|is not a valid address; write special characters"
    ) as error:
        track(results, params, uri)
    assert "cret" not in str(error.value)


def test_passwords_are_not_shown():
    assert shown("postgresql://me:secret@host/db") == "postgresql://host/db"
    assert shown("postgresql+psycopg2://me:se/cret@host/db") == "postgresql+psycopg2://host/db"
    assert shown("mysql://host/db?user=me&password=secret") == "mysql://host/db"
    assert shown("http://me:secret@host:5000/a@b") == "http://host:5000/a@b"
    assert shown("sqlite:///a@b.db") == "sqlite:///a@b.db"
    assert shown("https://host/mlflow?token=secret") == "https://host/mlflow"
    for unescaped in ("http://me:se/cret@host", "http://me:se?cret@host", "postgresql://me:12/se?cret@host/db"):
        assert "cret" not in shown(unescaped)
    error = "cannot open http://me:se%2Fcret@host?token=t0ken, password se/cret\nsecond line"
    shortened = _reason("http://me:se%2Fcret@host?token=t0ken", error)
    assert shortened == "cannot open http://me:***@host?token=***, password ***"


@pytest.mark.parametrize("address", ["http://127.0.0.1:{}", "postgresql://u:p@127.0.0.1:{}/db"])
def test_a_dead_server_is_one_sentence_and_fails_only_when_strict(results, params, capsys, address):
    uri = address.format(free_port())
    with pytest.raises(UserError, match="is unreachable"):
        track(results, params, uri)
    summary = track(results, params, uri, strict=False)
    assert (summary.missed, summary.added) == (RUNS, 0)
    assert capsys.readouterr().err == (
        f"MLflow at {shown(uri)} is unreachable; {RUNS} runs are not logged yet; run 'vpd track' later\n"
    )


def test_help_does_not_show_the_address_in_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host")
    with pytest.raises(SystemExit):
        main(["track", "--help"])
    assert "secret" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_server_that_comes_late_gets_what_it_missed(results, params, tmp_path):
    port = free_port()
    dead = f"http://127.0.0.1:{port}"
    spec = params.resolve("seg-up")
    with Live(dead, spec, 0) as live:
        live(5, {"loss": 0.6})
    assert track(results, params, dead, strict=False).missed == RUNS
    with mlflow_server(tmp_path, port, f"sqlite:///{tmp_path / 'server.db'}") as uri:
        with Live(uri, spec, 0) as live:
            live(5, {"loss": 0.6})
        assert list(shown_runs(uri)) == ["seg-up/seed0"]
        summary = track(results, params, uri)
        assert (summary.added, summary.replaced) == (RUNS - 1, 1)
        assert_complete(uri, params)
        assert track(results, params, uri).kept == RUNS
        panels = MlflowClient(uri).list_artifacts(shown_runs(uri)["seg-up/seed0"][0].info.run_id, "panels")
        assert [panel.path for panel in panels] == ["panels/predictions.png"]


# --------------------------------------------------------------------------------------------------------- live logging
@pytest.mark.parametrize("kind", ["dead", "silent"])
def test_a_server_that_does_not_answer_costs_a_training_one_line_and_a_few_seconds(params, capsys, kind):
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{free_port() if kind == 'dead' else silent.getsockname()[1]}"
        with Live(uri, params.resolve("seg-up"), 0) as live:
            for step in range(2000):
                live(step, {"loss": 1.0, "lr": 0.1})
    assert time.monotonic() - started < 10
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"live logging of seg-up/seed0 stopped: MLflow at {uri} is unreachable" in said


def test_requests_take_a_small_part_of_the_time(params, uri, monkeypatch):
    now, sent = [1000.0], []
    monkeypatch.setattr("vpd.tracking.live.time.monotonic", lambda: now[0])

    def send(client, run, points, given):
        now[0] += 0.5  # a slow server
        sent.append(len(points))

    monkeypatch.setattr("vpd.tracking.live.log_points_and_params", send)
    with Live(uri, params.resolve("seg-up"), 0) as live:
        for step in range(100):
            live(step, {"loss": 1.0})
            now[0] += 1
    assert sum(sent) == 100
    assert 0.5 * len(sent) < 0.04 * (now[0] - 1000)


def test_a_resumed_training_continues_its_live_run_and_sync_replaces_it(results, uri, params):
    spec = params.resolve("seg-up")
    for steps in (range(5, 55, 5), range(30, 105, 5)):  # interrupted at 50, resumed from the state of step 25
        with Live(uri, spec, 1) as live:
            for step in steps:
                live(step, {"loss": 1 / step, "lr": 0.1})
    ((name, (run,)),) = shown_runs(uri).items()
    points = MlflowClient(uri).get_metric_history(run.info.run_id, "train/loss")
    assert (name, run.info.status) == ("seg-up/seed1", "FINISHED")
    assert [point.step for point in points] == list(range(5, 105, 5))
    assert run.data.params["model.attention.places"] == "up"
    assert compare_links(uri, params) == {}  # no final metrics yet
    summary = track(results, params, uri)
    assert (summary.replaced, summary.added) == (1, RUNS - 1)
    assert_complete(uri, params)


# -------------------------------------------------------------------------------------------------------------- links
def test_links_open_the_rows_of_a_table_in_the_papers_order(results, uri, params):
    link = track(results, params, uri).links["table5"]
    ids = {name: run.info.run_id for name, (run,) in shown_runs(uri).items()}
    runs = [ids[f"{name}/seed0"] for name in params.experiments]
    assert link == compare_links(uri, params)["table5"] == compare_url(uri, "1", runs)
    for run in runs:
        rows = MlflowClient(uri).get_run(run).data.metrics
        assert next(iter(rows)) == "final/miou_ss_mean"
    assert link.startswith(f"http://127.0.0.1:5000/#/compare-runs?runs=%5B%22{runs[0]}")
    assert compare_url("https://me:secret@host/mlflow/", "1", ["a", "b"]) == (
        "https://host/mlflow/#/compare-runs?runs=%5B%22a%22%2C%22b%22%5D&experiments=%5B%221%22%5D&workflowType=machine_learning"
    )
    assert ui_command(uri) == f"mlflow server --backend-store-uri {uri} --workers 1"
    assert ui_command("https://host") is None
