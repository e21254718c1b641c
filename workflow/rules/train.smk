rule train:
    input:
        data=lambda wildcards: ancient(
            f"data/{SCALE}/{SPECS[wildcards.name].dataset}/manifest.json"
        ),
        checkpoint=lambda wildcards: ancient(
            f"checkpoints/{SCALE}/{SPECS[wildcards.name].checkpoint}/manifest.json"
        ),
        key=key("train", needs_data(), needs_weights),
    output:
        runs=f"results/{SCALE}/runs/{{name}}/manifest.json",
        spec=f"results/{SCALE}/specs/{{name}}.json",
        history=f"results/{SCALE}/history/{{name}}.csv",
        timing=f"results/{SCALE}/timing/train/{{name}}.json",
    log:
        f"logs/{SCALE}/train/{{name}}.log",
    priority: lambda wildcards: PRIORITIES[wildcards.name]
    threads: reserved("train", "cpus")
    resources:
        gpu=reserved("train", "gpus"),
        gpu_mem_mb=reserved("train", "gpu_mem_mb"),
        mem_mb=reserved("train", "mem_mb"),
        runtime=reserved("train", "runtime"),
    params:
        choice=PROTOCOL_CHOICE,
    shell:
        "vpd train {wildcards.name:q} {params.choice} 2>&1 | tee {log}"
