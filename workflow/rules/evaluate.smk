rule evaluate:
    input:
        spec=f"results/{SCALE}/specs/{{name}}.json",
        data=lambda wildcards: f"data/{SCALE}/{SPECS[wildcards.name].dataset}/manifest.json",
        checkpoint=lambda wildcards: f"checkpoints/{SCALE}/{SPECS[wildcards.name].checkpoint}/manifest.json",
        runs=f"results/{SCALE}/runs/{{name}}/manifest.json",
        code=code("datasets", "models", "evaluation"),
    output:
        metrics=f"results/{SCALE}/metrics/{{name}}.json",
        predictions=f"results/{SCALE}/panels/{{name}}/predictions.png",
        timing=f"results/{SCALE}/timing/evaluate/{{name}}.json",
    log:
        f"logs/{SCALE}/evaluate/{{name}}.log",
    conda:
        "../../environment.yml"
    threads: reserved("evaluate", "cpus")
    resources:
        gpu=reserved("evaluate", "gpus"),
        gpu_mem_mb=reserved("evaluate", "gpu_mem_mb"),
        mem_mb=reserved("evaluate", "mem_mb"),
        runtime=reserved("evaluate", "runtime"),
    params:
        data=lambda wildcards, input: folder(input.data),
        checkpoint=lambda wildcards, input: folder(input.checkpoint),
        runs=lambda wildcards, input: folder(input.runs),
        panels=lambda wildcards, output: folder(output.predictions),
        state=f".vpd/{SCALE}/evaluate/{{name}}",
    shell:
        "vpd evaluate {wildcards.name} --spec {input.spec} --data {params.data}"
        " --checkpoint {params.checkpoint} --runs {params.runs}"
        " --metrics {output.metrics} --panels {params.panels}"
        " --state {params.state} --timing {output.timing} 2>&1 | tee {log}"


rule released:
    input:
        data=expand(
            f"data/{SCALE}/{{name}}/manifest.json", name=["ade20k", "nyuv2", "refcoco"]
        ),
        checkpoint=f"checkpoints/{SCALE}/sd-1-5/manifest.json",
        code=code("pretrained", "datasets", "models", "evaluation"),
    output:
        index=f"results/{SCALE}/released/index.json",
        timing=f"results/{SCALE}/timing/released/released.json",
    log:
        f"logs/{SCALE}/released.log",
    conda:
        "../../environment.yml"
    threads: 1
    params:
        scale=SCALE,
        protocol=PROTOCOL,
        data=lambda wildcards, input: folder(folder(input.data[0])),
        checkpoints=lambda wildcards, input: folder(folder(input.checkpoint)),
        archives="downloads/archives",
        out=lambda wildcards, output: folder(output.index),
        state=f".vpd/{SCALE}/released",
        specs=[
            (line.model_dump_json(), SPECS[line.experiment or name].model_dump_json())
            for name, line in PARAMS.released.items()
        ],
    shell:
        "vpd released --scale {params.scale} --protocol {params.protocol} --data {params.data}"
        " --checkpoints {params.checkpoints} --archives {params.archives} --out {params.out}"
        " --state {params.state} --timing {output.timing} 2>&1 | tee {log}"
