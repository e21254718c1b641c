rule train:
    input:
        data=lambda wildcards: f"data/{SCALE}/{SPECS[wildcards.name].dataset}/manifest.json",
        checkpoint=lambda wildcards: f"checkpoints/{SCALE}/{SPECS[wildcards.name].checkpoint}/manifest.json",
        code=code("datasets", "models", "training"),
    output:
        runs=f"results/{SCALE}/runs/{{name}}/manifest.json",
        spec=f"results/{SCALE}/specs/{{name}}.json",
        history=f"results/{SCALE}/history/{{name}}.csv",
        timing=f"results/{SCALE}/timing/train/{{name}}.json",
    log:
        f"logs/{SCALE}/train/{{name}}.log",
    conda:
        "../../environment.yml"
    threads: reserved("train", "cpus")
    resources:
        gpu=reserved("train", "gpus"),
        gpu_mem_mb=reserved("train", "gpu_mem_mb"),
        mem_mb=reserved("train", "mem_mb"),
        runtime=reserved("train", "runtime"),
    params:
        scale=SCALE,
        protocol=PROTOCOL,
        data=lambda wildcards, input: folder(input.data),
        checkpoint=lambda wildcards, input: folder(input.checkpoint),
        runs=lambda wildcards, output: folder(output.runs),
        state=f".vpd/{SCALE}/train/{{name}}",
        spec=lambda wildcards: SPECS[wildcards.name].model_dump_json(),
    shell:
        "vpd train {wildcards.name} --scale {params.scale} --protocol {params.protocol} --data {params.data}"
        " --checkpoint {params.checkpoint} --runs {params.runs}"
        " --spec {output.spec} --history {output.history}"
        " --state {params.state} --timing {output.timing} 2>&1 | tee {log}"
