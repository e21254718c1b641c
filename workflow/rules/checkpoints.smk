checkpoint pretrain:
    input:
        data=ancient(f"data/{SCALE}/{PARAMS.pretraining.dataset}/manifest.json"),
        key=key("pretrain", needs_data(PARAMS.pretraining.dataset)),
    output:
        manifest=f"checkpoints/{SCALE}/pretraining/manifest.json",
        timing=f"results/{SCALE}/timing/pretrain/pretraining.json",
    log:
        f"logs/{SCALE}/pretrain.log",
    threads: PARAMS.pretraining.threads
    params:
        choice=CHOICE,
    shell:
        "vpd pretrain {params.choice} 2>&1 | tee {log}"


checkpoint checkpoint:
    input:
        pretraining=ancient(checkpoints.pretrain.rule.output.manifest),
        data=ancient(f"data/{SCALE}/{PARAMS.pretraining.dataset}/manifest.json"),
        key=key("checkpoint", needs_data(PARAMS.pretraining.dataset), needs_pretraining),
    output:
        manifest=f"checkpoints/{SCALE}/{{checkpoint}}/manifest.json",
        timing=f"results/{SCALE}/timing/checkpoint/{{checkpoint}}.json",
    log:
        f"logs/{SCALE}/checkpoint/{{checkpoint}}.log",
    threads: PARAMS.pretraining.threads
    params:
        choice=CHOICE,
    shell:
        "vpd checkpoint {wildcards.checkpoint:q} {params.choice} 2>&1 | tee {log}"


checkpoint measure:
    input:
        checkpoints=ancient(
            expand(f"checkpoints/{SCALE}/{{name}}/manifest.json", name=PARAMS.measured)
        ),
        key=key("measure", needs_measured),
    output:
        manifest=f"results/{SCALE}/measures/manifest.json",
        timing=f"results/{SCALE}/timing/measure/measures.json",
    log:
        f"logs/{SCALE}/measure.log",
    threads: PARAMS.measures.threads if PARAMS.measures else 1
    params:
        choice=CHOICE,
    shell:
        "vpd measure {params.choice} 2>&1 | tee {log}"


rule ship:
    input:
        checkpoints=ancient(
            expand(
                f"checkpoints/{SCALE}/{{name}}/manifest.json",
                name=["pretraining", *PARAMS.checkpoints, *PARAMS.backbones],
            )
        ),
        measures=ancient(checkpoints.measure.rule.output.manifest),
        key=key("ship", needs_checkpoints, needs_backbones, needs_measures),
    output:
        timing=f"results/{SCALE}/timing/ship/weights.json",
    log:
        f"logs/{SCALE}/ship.log",
    localrule: True
    threads: 1
    params:
        choice=CHOICE,
    shell:
        "vpd ship {params.choice} 2>&1 | tee {log}"


checkpoint backbone:
    input:
        captions=ancient(f"data/{SCALE}/{PARAMS.block.backbones.dataset}/manifest.json"),
        objects=ancient(f"data/{SCALE}/{PARAMS.block.backbones.objects}/manifest.json"),
        key=key(
            "backbone",
            needs_data(PARAMS.block.backbones.dataset, PARAMS.block.backbones.objects),
        ),
    output:
        manifest=f"checkpoints/{SCALE}/{{backbone}}/manifest.json",
        facts=f"results/{SCALE}/backbones/{{backbone}}.json",
        timing=f"results/{SCALE}/timing/backbone/{{backbone}}.json",
    log:
        f"logs/{SCALE}/backbone/{{backbone}}.log",
    threads: PARAMS.block.backbones.threads
    params:
        choice=CHOICE,
    shell:
        "vpd backbone {wildcards.backbone:q} {params.choice} 2>&1 | tee {log}"
