rule report:
    input:
        metrics=per_experiment(rules.evaluate.output.metrics),
        provenance=per_experiment(rules.evaluate.output.provenance),
        predictions=per_experiment(rules.evaluate.output.predictions),
        history=per_experiment(rules.train.output.history),
        timing=per_experiment(rules.train.output.timing)
        + per_experiment(rules.evaluate.output.timing)
        + expand(
            f"results/{SCALE}/timing/backbone/{{backbone}}.json",
            backbone=PARAMS.backbones,
        ),
        costs=str(PATHS.costs),
        backbones=expand(
            f"results/{SCALE}/backbones/{{backbone}}.json", backbone=PARAMS.backbones
        ),
        released=rules.released.output.index,
        measures=ancient(f"results/{SCALE}/measures/manifest.json"),
        pretraining=ancient(f"checkpoints/{SCALE}/pretraining/manifest.json"),
        previews=ancient(
            expand(f"data/{SCALE}/{{dataset}}/preview.png", dataset=PARAMS.datasets)
        ),
        # While a dataset is made, its manifest stands in for the key, so it has to be `ancient` as well.
        data=ancient(
            expand(f"data/{SCALE}/{{dataset}}/manifest.json", dataset=PARAMS.datasets)
        ),
        key=key(
            "report", needs_data(*PARAMS.datasets), needs_pretraining, needs_measures
        ),
    output:
        report=f"results/{SCALE}/REPORT.md",
        page=report(
            f"results/{SCALE}/report.html",
            caption="../captions/page.rst",
            category="Tables and claims",
            labels={"what": "all results on one page"},
        ),
        cells=report(
            f"results/{SCALE}/tables/cells.csv",
            caption="../captions/cells.rst",
            category="Tables and claims",
            labels={"what": "every cell of every table"},
        ),
        claims=report(
            f"results/{SCALE}/tables/claims.csv",
            caption="../captions/claims.rst",
            category="Tables and claims",
            labels={"what": "the paper's claims"},
        ),
        figures=[
            report(
                f"results/{SCALE}/figures/{name}.svg",
                caption="../captions/figure.rst",
                category="Figures",
                labels={"what": name},
            )
            for name, figure in PARAMS.figures.items()
            if figure.drawn
        ],
    log:
        f"logs/{SCALE}/report.log",
    localrule: True
    threads: 1
    params:
        choice=PROTOCOL_CHOICE,
    message:
        "report: write every table and figure"
    shell:
        "vpd report {params.choice} 2>&1 | tee {log}"


rule track:
    input:
        specs=per_experiment(rules.train.output.spec),
        metrics=per_experiment(rules.evaluate.output.metrics),
        provenance=per_experiment(rules.evaluate.output.provenance),
        history=per_experiment(rules.train.output.history),
        predictions=per_experiment(rules.evaluate.output.predictions),
        report=rules.report.output.report,
        page=rules.report.output.page,
        cells=rules.report.output.cells,
        figures=rules.report.output.figures,
        key=key("track"),
    output:
        summary=f".vpd/{SCALE}/tracked.json",
        fingerprint=f".vpd/{SCALE}/tracked/fingerprint.json",
    log:
        f"logs/{SCALE}/track.log",
    localrule: True
    threads: 1
    params:
        choice=PROTOCOL_CHOICE,
    message:
        "track: log every run to MLflow"
    shell:
        "vpd track {params.choice} --if-reachable 2>&1 | tee {log}"
