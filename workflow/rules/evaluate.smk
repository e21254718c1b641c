rule evaluate:
    input:
        data=lambda wildcards: ancient(
            f"data/{SCALE}/{SPECS[wildcards.name].dataset}/manifest.json"
        ),
        checkpoint=lambda wildcards: ancient(
            f"checkpoints/{SCALE}/{SPECS[wildcards.name].checkpoint}/manifest.json"
        ),
        spec=rules.train.output.spec,
        runs=rules.train.output.runs,
        key=key("evaluate", needs_data(), needs_weights),
    output:
        metrics=f"results/{SCALE}/metrics/{{name}}.json",
        headline=f"results/{SCALE}/headlines/{{name}}.json",
        provenance=f"results/{SCALE}/provenance/{{name}}.json",
        predictions=report(
            f"results/{SCALE}/panels/{{name}}/predictions.png",
            caption="../captions/predictions.rst",
            category="Predictions",
            subcategory=lambda wildcards: SPECS[wildcards.name].task,
            labels={"experiment": "{name}"},
        ),
        timing=f"results/{SCALE}/timing/evaluate/{{name}}.json",
    log:
        f"logs/{SCALE}/evaluate/{{name}}.log",
    threads: reserved("evaluate", "cpus")
    resources:
        gpu=reserved("evaluate", "gpus"),
        gpu_mem_mb=reserved("evaluate", "gpu_mem_mb"),
        mem_mb=reserved("evaluate", "mem_mb"),
        runtime=reserved("evaluate", "runtime"),
    params:
        choice=PROTOCOL_CHOICE,
    shell:
        "vpd evaluate {wildcards.name:q} {params.choice} 2>&1 | tee {log}"


rule released:
    input:
        data=ancient(
            expand(
                f"data/{SCALE}/{{name}}/manifest.json",
                name=["ade20k", "nyuv2", "refcoco"],
            )
        ),
        checkpoint=ancient(f"checkpoints/{SCALE}/sd-1-5/manifest.json"),
        key=key(
            "released",
            needs_data("ade20k", "nyuv2", "refcoco"),
            lambda wildcards: checkpoints.checkpoint.get(checkpoint="sd-1-5"),
        ),
    output:
        index=f"results/{SCALE}/released/index.json",
        timing=f"results/{SCALE}/timing/released/released.json",
    log:
        f"logs/{SCALE}/released.log",
    threads: reserved_for_released("cpus")
    resources:
        gpu=reserved_for_released("gpus"),
        gpu_mem_mb=reserved_for_released("gpu_mem_mb"),
        mem_mb=reserved_for_released("mem_mb"),
        runtime=reserved_for_released("runtime"),
    params:
        choice=PROTOCOL_CHOICE,
    shell:
        "vpd released {params.choice} 2>&1 | tee {log}"
