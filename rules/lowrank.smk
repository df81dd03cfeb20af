rule rank_curve:
    input:
        matrix=f"{RESULTS}/{{model}}/Z.parquet",
    output:
        curve=f"{RESULTS}/{{model}}/rank_curve.csv",
    log:
        f"{LOGS}/rank_curve/{{model}}.log",
    conda:
        "../envs/analysis.yaml"
    script:
        "../workflow_scripts/rank_curve.py"


if NOISE:

    rule repeat_row:
        input:
            card=f"{RESULTS}/{{model}}/model.json",
            base=f"{RESULTS}/{{model}}/base.parquet",
            upstream=f"{RESULTS}/upstream.parquet",
            train=f"{RESULTS}/tasks/{{task}}/train.parquet",
            evaluation=f"{RESULTS}/tasks/{{task}}/eval.parquet",
        output:
            f"{RESULTS}/{{model}}/repeats/{{task}}-seed{{seed}}.parquet",
            expand(
                f"{RESULTS}/{{{{model}}}}/repeats/{{{{task}}}}-seed{{{{seed}}}}-again{{i}}.parquet",
                i=range(1, NOISE.measurements + 1),
            ),
        log:
            f"{LOGS}/repeat_row/{{model}}/{{task}}-seed{{seed}}.log",
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
            recipe=TASK_RECIPE,
            scoring=SCORING,
        script:
            "../workflow_scripts/repeat_row.py"

    rule noise_floor:
        input:
            matrix=f"{RESULTS}/{{model}}/Z.parquet",
            rows=repeated_rows,
            repeats=repeat_files,
        output:
            noise=f"{RESULTS}/{{model}}/noise.json",
            columns=f"{RESULTS}/{{model}}/noise.parquet",
        log:
            f"{LOGS}/noise_floor/{{model}}.log",
        conda:
            "../envs/analysis.yaml"
        params:
            tasks=NOISE.tasks,
            seed=SETTINGS.seed,
        script:
            "../workflow_scripts/noise_floor.py"


if TRANSFER:

    rule transfer:
        input:
            matrices=tables("Z.parquet"),
        output:
            scores=f"{RESULTS}/transfer.csv",
        log:
            f"{LOGS}/transfer.log",
        conda:
            "../envs/analysis.yaml"
        params:
            models=MODELS,
            tasks=task_table(),
            transfer=SETTINGS.transfer.model_dump(mode="json"),
        script:
            "../workflow_scripts/transfer.py"
