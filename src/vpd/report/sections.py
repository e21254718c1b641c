"""REPORT.md: its sections in order, each from what the report knows."""

from __future__ import annotations

from vpd.report import markdown
from vpd.report.context import Report
from vpd.report.names import ordinal
from vpd.report.tables import markdown_table

LEGEND = (
    "Bold: measured here, mean ± standard deviation over seeds; below it the paper's number and, in brackets, the "
    "difference (measured minus paper). Rows whose source is `quoted` repeat the paper.\n"
)
INTERVALS = (
    "*Supported* and *contradicted* mean that the 95 % interval over seeds excludes zero, for every comparison of the "
    "claim or for one of them. Seeds differ in initialisation and order of the data, not in the data, and with few seeds "
    "an interval is wide: *inconclusive* means that these runs cannot tell, not that there is no difference. One seed "
    "never decides.\n"
)
CAPTIONS = {
    "points": "VPD against the pre-training steps of its diffusion model; mean, standard deviation and seeds",
    "table": "mean, standard deviation and seeds of its rows; the best mean in orange",
    "curves": "learning curves of its rows, VPD in front: training loss, and the metric where it is measured on the way",
}
TRAINING = "Training loss, {}: seeds thin, their smoothed mean thick, the range of all experiments of the task grey"
COSTS = (
    "Training time is the wall time of one seed on the machine that ran it, where other jobs may have run at the same "
    "time. Parameters and multiply-adds of one forward pass are counted from the network at scale `{}`.\n"
)


def text(report: Report) -> str:
    """REPORT.md."""
    links, folder = markdown.Links(report.out), report.out / "figures"
    params = report.params
    sections = [
        markdown.summary(params.scale, report.protocol, params.comparable, report.cells),
        "The same as one page with the provenance of every number: [report.html](report.html).\n",
        "## What the paper claims\n\n" + markdown.findings(report.claims) + "\n" + INTERVALS,
        questions(report),
        *pictures(report, links),
        "## The paper's tables\n",
        *(markdown_table(name, params.tables.get(name), report.reported[name], report.cells) for name in report.tables),
        LEGEND,
        released(report),
        *panels(report, links),
        "## What every row costs\n\n" + markdown.costs(report.row_costs) + "\n" + COSTS.format(report.counted_scale),
        "## What each pre-trained network saw\n\n" + markdown.backbones(report.backbones),
        "## Training\n\n"
        + "\n".join(links.figure(TRAINING.format(task), folder / f"training-{task}.png") for task in report.tasks),
        *pretraining(report, links),
        data(report, links),
        "## Time by stage\n\n" + markdown.times(report.timings),
        "## Where the numbers come from\n\n" + source_table(report, links),
    ]
    return "\n".join(section for section in sections if section)


def questions(report: Report) -> str:
    """What is asked beyond the paper, if anything."""
    return "## Beyond the paper\n\n" + markdown.findings(report.answers) if report.answers else ""


def drawn(report: Report) -> dict[str, str]:
    """Figures of params.yaml that the report draws itself, with their captions."""
    captions = {}
    for name, figure in report.params.figures.items():
        if figure.drawn:
            kind = next(kind for kind in CAPTIONS if getattr(figure, kind))
            captions[name] = f"{ordinal(figure.table or figure.curves or name)}: {CAPTIONS[kind]}"
    return captions


def pictures(report: Report, links: markdown.Links) -> list[str]:
    """The figures that the report draws from the results."""
    folder = report.out / "figures"
    shown = [links.figure(caption, folder / f"{name}.png") for name, caption in drawn(report).items()]
    return ["## Figures\n", *shown] if shown else []


def released(report: Report) -> str:
    """What was found out about weights of others, where the scale measures them."""
    own = "## The authors' released weights\n\n" + markdown.released(report.released) if report.released else ""
    public = "## Public models of others\n\n" + markdown.public(report.public) if report.public else ""
    return "\n".join(filter(None, (own, public)))


def panels(report: Report, links: markdown.Links) -> list[str]:
    """Figures whose panels the evaluation drew."""
    folder = report.results / "panels"
    return [
        f"## {ordinal(name)}\n\n" + markdown.panels(name, figure, links, folder)
        for name, figure in report.params.figures.items()
        if not figure.drawn
    ]


def pretraining(report: Report, links: markdown.Links) -> list[str]:
    """Loss and samples of the small Stable Diffusion, if this scale pre-trains one."""
    if not report.params.pretraining.milestones:
        return []
    folder = report.out / "figures"
    return [
        "## The small Stable Diffusion\n",
        links.figure("Loss of each phase of pre-training", folder / "pretraining-loss.png"),
        links.image("Images drawn from prompts, one line per milestone", folder / "pretraining-samples.png"),
    ]


def data(report: Report, links: markdown.Links) -> str:
    """Contact sheets of the datasets."""
    folder = report.out / "figures"
    sheets = [links.image(f"Samples of `{name}`", folder / f"data-{name}.png") for name in report.previews]
    return "## The data\n\n" + "\n".join(sheets) if sheets else ""


def source_table(report: Report, links: markdown.Links) -> str:
    """Experiments with links to the files behind them."""
    experiments = {name: line.task for name, line in report.params.experiments.items()}
    return markdown.sources(experiments, report.cells, links, report.results)
