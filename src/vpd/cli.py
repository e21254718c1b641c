"""The ``vpd`` command: parse, call, print. Each stage of the workflow is one subcommand; the work is in ``vpd.stages``.

Heavy packages are imported inside the commands, so that ``vpd --help`` answers at once.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vpd.utils import forkserver
from vpd.utils.errors import UserError, curable

if TYPE_CHECKING:
    from vpd.config.params import Params
    from vpd.config.paths import Paths

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DESCRIPTION = (
    "VPD (ICCV 2023) as one workflow. The commands from `data` on are its stages, run by dvc repro or snakemake."
)
STAGES = {
    "data": ("dataset", "draw synthetic scenes, or download and check a real dataset"),
    "pretrain": ("", "pre-train the small Stable Diffusion"),
    "checkpoint": ("checkpoint", "take or check one Stable Diffusion checkpoint"),
    "measure": ("", "measure what each Stable Diffusion checkpoint draws, and whether its words point"),
    "backbone": ("backbone", "download one backbone's public weights, or pre-train it small"),
    "train": ("experiment", "train one experiment, all its seeds"),
    "evaluate": ("experiment", "measure one experiment, all its seeds"),
}
"""Stage -> what its name is that of, if it has one, and what it does."""
PREDICT_PATHS = {
    "spec": "resolved spec of the experiment",
    "weights": "its weights",
    "checkpoint": "its Stable Diffusion checkpoint",
    "data": "its dataset, for the names of classes",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; without ``arguments``, that of the command line, after which Ctrl-C has nothing to interrupt."""
    status = _main(arguments)
    if arguments is None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return status


def _main(arguments: list[str] | None) -> int:
    """Run one command.

    Returns:
        0 on success, 1 for a fault of vpd, 2 for a mistake that the user can cure, 130 when interrupted, 141 on a closed
        pipe. ``vpd diff`` and ``vpd stale`` return 1 if they found something.
    """
    for name, value in forkserver.PRESETS.items():
        os.environ.setdefault(name, value)
    os.environ.update(forkserver.FIXED)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not have all characters
    options = parser().parse_args(arguments)
    try:
        heavy = options.run is _released or (options.run is _stage and options.stage != "data")
        served = arguments is None and heavy
        status = forkserver.run() if served else None
        return options.run(options) or 0 if status is None else status
    except KeyboardInterrupt:
        print("vpd: interrupted; run the same command again to continue from the last saved state", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader closed the pipe, such as head, or tee of a workflow: no success, but nothing to explain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        mistake = curable(error)
        print(f"vpd: {mistake or _recorded(error)}", file=sys.stderr)
        return 2 if mistake else 1


def _recorded(error: Exception) -> str:
    """Write the traceback of a fault of vpd to a file, and say so in a sentence."""
    import tempfile
    import traceback

    folder = ".vpd" if os.access(".vpd", os.W_OK) else None
    with tempfile.NamedTemporaryFile(dir=folder, prefix="fault-", suffix=".log", delete=False) as file:
        file.write("".join([f"{sys.argv}\n", *traceback.format_exception(error)]).encode("utf-8", "backslashreplace"))
    what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return f"this is a fault of vpd ({UserError(what)}); please report it with its traceback, which is in {file.name}"


# ---------------------------------------------------------------------------------------------------------------- parser
def parser() -> argparse.ArgumentParser:
    """The command line."""
    begin = "Begin with vpd demo, or with vpd predict and a picture of your own."
    top = argparse.ArgumentParser(prog="vpd", description=DESCRIPTION, epilog=begin, allow_abbrev=False)
    top.add_argument("--version", action=_Version, nargs=0, help="print the version and the commit")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _everyday(commands)
    _paper_scale(commands)
    _stages(commands)
    return top


class _Version(argparse.Action):
    """Print the version, and the commit where vpd runs from a clone; asks git only when it is used."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from vpd import __version__
        from vpd.utils.fingerprint import source_commit

        commit = source_commit()
        print(f"vpd {__version__}" + (f" (commit {commit})" if commit else ""))
        parser.exit()


def _everyday(commands: Commands) -> None:
    command = _command(commands, "show", _show, "check all of params.yaml; print one resolved spec, or the matrix")
    command.add_argument("name", nargs="?", help="experiment; without it the matrix is listed")
    command.add_argument("--origin", action="store_true", help="say which layer of params.yaml set each value")
    _params(command)

    command = _command(commands, "predict", _predict, "depth, segments or the object of a text in your own images")
    command.add_argument("name", help="experiment whose weights are used, or models:/NAME/VERSION of MLflow's registry")
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them")
    command.add_argument("--out", type=Path, help="folder to write (default: predictions/NAME)")
    command.add_argument("--text", type=_text, help="what to look for (referring segmentation)")
    command.add_argument("--scene", help="kind of room, such as kitchen (depth)")
    command.add_argument(
        "--precision", default="fp32", help="fp32 as in evaluation, or bf16: half the memory once loaded, other digits"
    )
    _uri(command)
    _params(command)
    for name, text in PREDICT_PATHS.items():
        command.add_argument(f"--{name}", type=Path, metavar="PATH", help=f"{text} (default: that of the scale)")

    command = _command(commands, "demo", _demo, "draw a room from a prompt and show what the networks see in it")
    command.add_argument("--prompt", help="what to draw (default: the first of measures.sample_prompts)")
    command.add_argument("--seed", type=int, default=6, help="another room for each number (default: %(default)s)")
    out = Path("predictions/demo.png")
    command.add_argument("--out", type=Path, default=out, metavar="FILE", help="PNG to write (default: %(default)s)")
    _params(command)

    command = _command(commands, "diff", _diff, "compare two results folders cell by cell")
    command.add_argument("first", type=Path, help="results folder, or a cells.csv")
    command.add_argument("second", type=Path, help="another one")

    text = "run a command whose stages share one import of torch, such as vpd preload dvc repro"
    command = _command(commands, "preload", _preload, text)
    command.add_argument(
        "--ahead", action="store_true", help="train and evaluate ahead of it on the cores that it leaves idle"
    )
    command.add_argument("command", nargs=argparse.REMAINDER, help="command with its arguments")

    command = _command(commands, "stale", _stale, "list every stage whose output does not belong to the present inputs")
    _params(command)


def _paper_scale(commands: Commands) -> None:
    command = _command(commands, "fetch", _fetch, "download a dataset or released weights, or list what there is")
    command.add_argument("name", nargs="?", help="dataset or entry; without it all are listed")
    command.add_argument("--out", type=Path, help="folder to complete (default: that in params.yaml)")
    _archives(command)
    command.add_argument("--accept-licence", action="store_true", help="agree to the terms that are shown without it")
    command.add_argument(
        "--from-archive",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="files you have already",
    )
    command.add_argument("--sources", type=Path, help="catalogue of addresses instead of the one that comes with vpd")
    _params(command, protocol=False)

    command = _command(commands, "cost", _cost, "parameters, multiply-adds, memory and GPU-hours, before anything runs")
    command.add_argument("names", nargs="*", metavar="EXPERIMENT", help="experiments (default: the whole matrix)")
    command.add_argument(
        "--checkpoint", metavar="NAME", help="count VPD with this checkpoint instead of the experiment's own"
    )
    command.add_argument("--out", type=Path, help="JSON file of figures and resources to write")
    _params(command)

    command = _command(commands, "plan", _plan, "jobs, hours, gigabytes and what is done, before paying for them")
    command.add_argument(
        "words",
        nargs="*",
        metavar="WHAT",
        help="experiments, tasks, tables, figures or `beyond` (default: the whole matrix)",
    )
    command.add_argument("--gpus", type=_count, default=1, metavar="N", help="GPUs at hand (default: %(default)s)")
    shown = command.add_mutually_exclusive_group()
    shown.add_argument("--jobs", action="store_true", help="list every job with what it needs, too")
    shown.add_argument("--targets", action="store_true", help="list the evaluations alone, for dvc repro")
    _params(command)

    command = _command(commands, "import-weights", _import_weights, "turn the authors' released weights into a run")
    command.add_argument("name", help="experiment that the weights stand for")
    command.add_argument("file", type=Path, help="the authors' file")
    _params(command)


def _stages(commands: Commands) -> None:
    for stage, (kind, text) in STAGES.items():
        command = _command(commands, stage, _stage, text)
        if kind:
            command.add_argument("name", help=f"{kind}, as in params.yaml")
        if stage == "data":
            _archives(command)
        if stage == "train":
            live = os.environ.get("VPD_LIVE")
            command.add_argument("--live", metavar="URI", default=live, help="MLflow server to log to live")
        _params(command, protocol=stage in ("train", "evaluate"))
        command.set_defaults(stage=stage)

    text = "make DVC look again at datasets and weights in folders outside the project that changed"
    _params(_command(commands, "outside", _outside, text), protocol=False)

    command = _command(commands, "ship", _ship, "put the weights that this scale pre-trained into weights/, for git")
    command.add_argument(
        "names", nargs="*", metavar="NAME", help="pre-trained or trained networks to put there instead"
    )
    _params(command, protocol=False)

    command = _command(commands, "released", _released, "measure the weights that the authors released")
    _archives(command)
    _params(command)

    command = _command(commands, "report", _report, "write every table and figure next to the paper's numbers")
    command.add_argument("--out", type=Path, help="folder to write (default: that of the results)")
    _params(command)

    command = _command(commands, "track", _track, "log all results to MLflow, without duplicates")
    _params(command)
    _uri(command)
    command.add_argument("--if-reachable", action="store_true", help="succeed with a note when the server is down")


def _command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int | None], text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    command.set_defaults(run=run)
    return command


def _params(command: argparse.ArgumentParser, protocol: bool = True) -> None:
    default = Path("params.yaml")
    command.add_argument("--params", type=Path, default=default, help="the parameters (default: %(default)s)")
    command.add_argument("--scale", help="instead of the file's own")
    command.set_defaults(protocol=None)
    if protocol:
        command.add_argument("--protocol", help="instead of the file's own")


def _archives(command: argparse.ArgumentParser) -> None:
    from vpd.config.paths import ARCHIVES

    command.add_argument(
        "--archives", type=Path, default=ARCHIVES, help="folder of downloaded archives (default: %(default)s)"
    )


def _uri(command: argparse.ArgumentParser) -> None:
    usual = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    # Without %(default)s: the value itself may hold a password.
    text = "MLflow store (default: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db)"
    command.add_argument("--uri", default=usual, help=text)


def _text(text: str) -> str:
    """Text in UTF-8, whatever the locale."""
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        raise argparse.ArgumentTypeError("it is not text in UTF-8") from None


def _count(text: str) -> int:
    """A number of GPUs, at least one."""
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def _load(options: argparse.Namespace) -> tuple[Params, Paths]:
    from vpd.config.params import load_params
    from vpd.config.paths import Paths

    params = load_params(options.params, options.scale, options.protocol)
    return params, Paths(params.scale)


# -------------------------------------------------------------------------------------------------------------- everyday
def _show(options: argparse.Namespace) -> None:
    params, _ = _load(options)
    params.check_all()
    if options.origin and not options.name:
        raise UserError("--origin needs the name of an experiment, such as vpd show seg-fast --origin")
    if options.origin:
        print("\n".join(params.origins(options.name)))
    elif options.name:
        print(params.resolve(options.name).model_dump_json(indent=1))
    else:
        print(f"scale {params.scale}, protocol {params.protocol}: {len(params.experiments)} experiments\n")
        titles = ("experiment", "task", "method", "dataset", "checkpoint", "schedule", "seeds")
        print(_aligned([titles, *(_line_of(name, params) for name in params.experiments)]))


def _line_of(name: str, params: Params) -> tuple[str, ...]:
    line, seeds = params.experiments[name], params.resolve(name).seeds
    listed = f"{seeds[0]}-{seeds[-1]}" if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1 else None
    shown = listed or ",".join(map(str, seeds))
    return (name, line.task, line.method, line.variant or line.dataset, line.checkpoint, line.schedule, shown)


def _aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _predict(options: argparse.Namespace) -> int:
    from vpd.stages.predict import predict_pictures

    given = {name: getattr(options, name) for name in PREDICT_PATHS if getattr(options, name)}
    params = None if options.name.startswith("models:/") else _load(options)[0]
    failed = predict_pictures(
        options.name,
        options.images,
        options.out or Path("predictions", options.name.removeprefix("models:/").replace("/", "-")),
        params,
        given,
        options.uri,
        text=options.text,
        scene=options.scene,
        precision=options.precision,
    )
    return 2 if failed else 0


def _demo(options: argparse.Namespace) -> None:
    from vpd.stages.demo import draw_demo

    draw_demo(options.prompt, options.seed, options.out, _load(options)[0])
    print(f"the picture is {options.out}")


def _diff(options: argparse.Namespace) -> int:
    from vpd.report.cells import diff

    text, count = diff(options.first, options.second)
    print(text)
    return 1 if count else 0


def _stale(options: argparse.Namespace) -> int:
    from vpd.stages.keys import stages, stale

    params, paths = _load(options)
    names = list(stale(params, paths))
    print("\n".join(names) if names else "every output belongs to the present settings, code and inputs")
    if names:
        said = "stages have no output here that belongs to the present settings, code and inputs"
        print(f"{len(names)} of {len(list(stages(params)))} {said}", file=sys.stderr)
    return 1 if names else 0


def _preload(options: argparse.Namespace) -> None:
    from vpd.utils.devices import usable_gpus

    if not options.command:
        raise UserError("preload needs a command, such as vpd preload dvc repro")
    if not usable_gpus():  # which a copied process could not use
        forkserver.start()
        if options.ahead:
            from vpd.stages import ahead

            ahead.start()
    if options.command[0] == "dvc":
        from vpd.stages.engine import set_aside_damaged

        if aside := set_aside_damaged(Path("dvc.lock")):
            said = f"dvc.lock is damaged, as by a kill, and is now {aside}; stages that are finished will do nothing"
            print(said, file=sys.stderr)
    try:
        os.execvp(options.command[0], options.command)
    except OSError as error:
        raise UserError(f"cannot start {options.command[0]}: {error.strerror}; correct the command") from None


# ----------------------------------------------------------------------------------------------------------- paper scale
def _fetch(options: argparse.Namespace) -> None:
    from vpd.download import fetch, listing, shared_out

    if options.name is None:
        if options.out or options.accept_licence or options.from_archive:
            raise UserError("fetch needs a name for what is downloaded, such as vpd fetch ade20k --accept-licence")
        print(listing(options.sources, options.archives))
        return
    folders = _load(options)[0].downloads(options.name)
    given_by_entry = shared_out(folders, options.from_archive, options.sources)
    for entry, folder in folders.items():
        out = options.out or folder
        accepted, given = options.accept_licence, given_by_entry[entry]
        fetch(entry, out, options.archives, sources=options.sources, accept=accepted, given=given)
        print(f"{entry} is complete in {out}")


def _cost(options: argparse.Namespace) -> None:
    from vpd.planning.cost import all_costs, write_costs
    from vpd.planning.costs import markdown, paper_gflops

    params, _ = _load(options)
    params.check_tables()
    costs = all_costs(params, options.names or None, options.checkpoint)
    if options.out:
        write_costs(params, costs, options.out)
    print(markdown(costs, {} if options.checkpoint else paper_gflops(params)))


def _plan(options: argparse.Namespace) -> None:
    from vpd.planning.costs import read_entries
    from vpd.planning.plan import Computed, ancestors, describe, estimates, listing, read_graph, select
    from vpd.stages.keys import is_current

    params, paths = _load(options)
    names, jobs = select(params, options.words), read_graph(params)
    targets = [f"evaluate@{name}" for name in names]
    if options.targets:
        print("\n".join(targets))
        return
    if options.words:
        jobs = ancestors(jobs, targets)
    done = partial(is_current, params=params, paths=paths)
    needs = estimates(params, jobs, read_entries(paths.costs, Computed), done)
    if options.jobs:
        print(listing(needs), end="\n\n")
    title = f"scale {params.scale}, protocol {params.protocol}: {len(names)} of {len(params.experiments)} experiments"
    print(describe(title, jobs, needs, options.gpus))


def _import_weights(options: argparse.Namespace) -> None:
    from vpd.stages.released import import_experiment

    params, paths = _load(options)
    print(import_experiment(params.resolve(options.name), options.file, paths))


# ---------------------------------------------------------------------------------------------------------------- stages
def _stage(options: argparse.Namespace) -> None:
    from vpd.stages.run import run_stage

    given = {name: getattr(options, name) for name in ("archives", "live") if hasattr(options, name)}
    print(run_stage(options.stage, getattr(options, "name", ""), *_load(options), **given))


def _outside(options: argparse.Namespace) -> None:
    from vpd.stages.keys import forget_changed

    params, paths = _load(options)
    names = forget_changed(params, paths)
    print(f"to make again: {', '.join(names)}" if names else "nothing outside the project changed")


def _ship(options: argparse.Namespace) -> None:
    from vpd.stages.keys import note_made
    from vpd.stages.run import Stopwatch
    from vpd.stages.shipping import ship_one, ship_weights

    params, paths = _load(options)
    for name in options.names:
        ship_one(name, params, paths)
        print(f"{name} is in weights/{params.scale}/{name}")
    if options.names:
        return
    watch = Stopwatch("ship", "weights", paths)
    names = ship_weights(params, paths)
    watch.write(networks=len(names))
    note_made("ship", params, paths)
    print(
        f"{len(names)} networks are in weights/{params.scale}" if names else f"scale {params.scale} pre-trains nothing"
    )


def _released(options: argparse.Namespace) -> None:
    from vpd.stages.keys import note_made
    from vpd.stages.released import measure_released
    from vpd.stages.run import Stopwatch
    from vpd.utils.devices import claimed_gpus
    from vpd.utils.files import exclusive

    params, paths = _load(options)
    params.check_released()
    state = paths.state("released", "released")
    with exclusive(state), claimed_gpus(min(1, len(params.released))):
        watch = Stopwatch("released", "released", paths)
        missing = measure_released(params, paths.datasets, paths.checkpoints, options.archives, paths.released, state)
        watch.write(files=len(params.released) - len(missing))
        note_made("released", params, paths)
    if missing:
        print(f"not measured, because the weights are not available: {', '.join(missing)}")


def _report(options: argparse.Namespace) -> None:
    from vpd.report.write import write_report
    from vpd.stages.data import PREVIEW
    from vpd.stages.keys import keep_note, note_made

    params, paths = _load(options)
    params.check_tables()
    out = options.out or paths.results
    previews = {name: paths.dataset(name) / PREVIEW for name in params.datasets}
    with keep_note("report", paths.results / "REPORT.md", paths):
        write_report(params, paths.results, paths.pretraining, previews, out, costs=paths.costs, costs_scale="paper")
    if out == paths.results:
        note_made("report", params, paths)
    print(f"the report is {out / 'REPORT.md'}, and as one page {out / 'report.html'}")


def _track(options: argparse.Namespace) -> None:
    from vpd.stages.keys import note_made
    from vpd.tracking import sync, ui_command

    params, paths = _load(options)
    params.check_tables()
    params.check_registered()
    places, strict = (paths.datasets, paths.checkpoints, paths.tracked), not options.if_reachable
    summary = sync(paths.results, params, options.uri, *places, strict=strict)
    print(summary)
    if not summary.missed:
        command = ui_command(options.uri)
        if command:
            print(f"open the runs with: {command}\nthen {summary.runs}")
        elif summary.runs:
            print(f"the runs are at {summary.runs}")
        for table, link in summary.links.items():
            print(f"  {table} side by side: {link}")
    note_made("track", params, paths)


if __name__ == "__main__":
    sys.exit(main())
