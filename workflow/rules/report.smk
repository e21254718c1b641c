rule report:
    input:
        metrics=per_experiment(rules.evaluate.output.metrics),
        predictions=per_experiment(rules.evaluate.output.predictions),
        history=per_experiment(rules.train.output.history),
        timing=per_experiment(rules.train.output.timing)
        + per_experiment(rules.evaluate.output.timing)
        + expand(rules.backbone.output.timing, backbone=PARAMS.backbones),
        costs="workflow/costs.json",
        backbones=expand(rules.backbone.output.facts, backbone=PARAMS.backbones),
        released=[rules.released.output.index, rules.released.output.timing],
        pretraining=rules.pretrain.output.manifest,
        previews=expand(rules.data.output.preview, dataset=PARAMS.datasets),
        code=code("report", "config", kinds=(".py", ".yaml", ".html", ".css", ".md")),
    output:
        report=f"results/{SCALE}/REPORT.md",
        page=f"results/{SCALE}/report.html",
        cells=f"results/{SCALE}/tables/cells.csv",
        figure3=f"results/{SCALE}/figures/figure3.svg",
    log:
        f"logs/{SCALE}/report.log",
    conda:
        "../../environment.yml"
    localrule: True
    threads: 1
    params:
        scale=SCALE,
        protocol=PROTOCOL,
        results=lambda wildcards, output: folder(output.report),
        pretraining=lambda wildcards, input: folder(input.pretraining),
        previews=lambda wildcards, input: folder(folder(input.previews[0])),
        layout=PARAMS.layout(),
    shell:
        "vpd report --scale {params.scale} --protocol {params.protocol} --results {params.results} --pretraining {params.pretraining}"
        " --previews {params.previews} --out {params.results} --costs {input.costs} --costs-scale paper 2>&1 | tee {log}"


rule track:
    input:
        specs=per_experiment(rules.train.output.spec),
        metrics=per_experiment(rules.evaluate.output.metrics),
        history=per_experiment(rules.train.output.history),
        predictions=per_experiment(rules.evaluate.output.predictions),
        report=rules.report.output.report,
        page=rules.report.output.page,
        cells=rules.report.output.cells,
        figure3=rules.report.output.figure3,
        code=code("tracking"),
    output:
        summary=f".vpd/{SCALE}/tracked.json",
    log:
        f"logs/{SCALE}/track.log",
    conda:
        "../../environment.yml"
    localrule: True
    threads: 1
    params:
        scale=SCALE,
        protocol=PROTOCOL,
        results=lambda wildcards, input: folder(input.report),
        data=f"data/{SCALE}",
        checkpoints=f"checkpoints/{SCALE}",
        layout=PARAMS.layout(),
    shell:
        "vpd track --scale {params.scale} --protocol {params.protocol} --results {params.results} --data {params.data}"
        " --checkpoints {params.checkpoints} --if-reachable --out {output.summary} 2>&1 | tee {log}"
