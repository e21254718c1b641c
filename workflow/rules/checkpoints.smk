rule pretrain:
    input:
        data=f"data/{SCALE}/{PARAMS.pretraining.dataset}/manifest.json",
        code=code("pretraining"),
    output:
        manifest=f"checkpoints/{SCALE}/pretraining/manifest.json",
        timing=f"results/{SCALE}/timing/pretrain/pretraining.json",
    log:
        f"logs/{SCALE}/pretrain.log",
    conda:
        "../../environment.yml"
    threads: PARAMS.pretraining.threads
    params:
        scale=SCALE,
        data=lambda wildcards, input: folder(input.data),
        out=lambda wildcards, output: folder(output.manifest),
        state=f".vpd/{SCALE}/pretrain",
        spec=PARAMS.pretraining.model_dump_json(),
    shell:
        "vpd pretrain --scale {params.scale} --data {params.data} --out {params.out}"
        " --state {params.state} --timing {output.timing} 2>&1 | tee {log}"


rule checkpoint:
    input:
        pretraining=rules.pretrain.output.manifest,
        code=code("pretrained"),
    output:
        manifest=f"checkpoints/{SCALE}/{{checkpoint}}/manifest.json",
        timing=f"results/{SCALE}/timing/checkpoint/{{checkpoint}}.json",
    log:
        f"logs/{SCALE}/checkpoint/{{checkpoint}}.log",
    conda:
        "../../environment.yml"
    threads: 1
    params:
        scale=SCALE,
        pretraining=lambda wildcards, input: folder(input.pretraining),
        out=lambda wildcards, output: folder(output.manifest),
        spec=lambda wildcards: PARAMS.checkpoint(wildcards.checkpoint).model_dump_json(),
    shell:
        "vpd checkpoint {wildcards.checkpoint} --scale {params.scale} --pretraining {params.pretraining}"
        " --out {params.out} --timing {output.timing} 2>&1 | tee {log}"


rule backbone:
    input:
        captions=f"data/{SCALE}/{PARAMS.block.backbones.dataset}/manifest.json",
        objects=f"data/{SCALE}/{PARAMS.block.backbones.objects}/manifest.json",
        code=code("pretraining", "models/backbones", "pretrained"),
    output:
        manifest=f"checkpoints/{SCALE}/{{backbone}}/manifest.json",
        facts=f"results/{SCALE}/backbones/{{backbone}}.json",
        timing=f"results/{SCALE}/timing/backbone/{{backbone}}.json",
    log:
        f"logs/{SCALE}/backbone/{{backbone}}.log",
    conda:
        "../../environment.yml"
    threads: PARAMS.block.backbones.threads
    params:
        scale=SCALE,
        captions=lambda wildcards, input: folder(input.captions),
        objects=lambda wildcards, input: folder(input.objects),
        out=lambda wildcards, output: folder(output.manifest),
        state=f".vpd/{SCALE}/backbone/{{backbone}}",
        spec=lambda wildcards: PARAMS.backbone(wildcards.backbone).model_dump_json(),
    shell:
        "vpd backbone {wildcards.backbone} --scale {params.scale} --captions {params.captions}"
        " --objects {params.objects} --out {params.out} --facts {output.facts} --state {params.state}"
        " --timing {output.timing} 2>&1 | tee {log}"
