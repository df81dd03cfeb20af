rule replay_run:
    input:
        card=f"{RESULTS}/{{model}}/model.json",
        base=f"{RESULTS}/{{model}}/base.parquet",
        upstream=f"{RESULTS}/upstream.parquet",
        train=f"{RESULTS}/tasks/{{task}}/train.parquet",
        evaluation=f"{RESULTS}/tasks/{{task}}/eval.parquet",
        scores=replay_scores,
        measured=replay_measured,
    output:
        run=f"{RESULTS}/{{model}}/replay/{{strategy}}/{{task}}-seed{{seed}}.parquet",
    log:
        f"{LOGS}/replay_run/{{model}}/{{strategy}}/{{task}}-seed{{seed}}.log",
    group:
        RUNS_TOGETHER
    conda:
        "../envs/train.yaml"
    threads: same_for_all(job_threads)
    resources:
        gpu=same_for_all(gpus),
        mem_mb=memory,
        halvings=halvings,
        runtime=row_minutes,
        slurm_partition=same_for_all(partition),
        turn=1,
    params:
        recipe=TASK_RECIPE,
        scoring=SCORING,
        replay=SETTINGS.replay
        and SETTINGS.replay.model_dump(
            mode="json", include={"ratio", "temperature", "accounting"}
        ),
    script:
        "../workflow_scripts/replay_run.py"


rule gather_replay:
    input:
        runs=replay_files,
    output:
        runs=f"{RESULTS}/{{model}}/replay.csv",
        comparison=f"{RESULTS}/{{model}}/replay_comparison.csv",
    log:
        f"{LOGS}/gather_replay/{{model}}.log",
    conda:
        "../envs/analysis.yaml"
    script:
        "../workflow_scripts/gather_replay.py"
