# Replay: fine-tunes that mix in the examples a strategy draws, judged on held-out examples.
rule predict_rows:
    """Predicts the forgetting of each test task by one method, from a few probed examples."""
    input:
        matrix=f"{RESULTS}/{{model}}/Z.parquet",
        upstream=f"{RESULTS}/upstream.parquet",
    output:
        predictions=f"{RESULTS}/{{model}}/predictions/{{method}}.parquet",
    log:
        f"{LOGS}/predict_rows/{{model}}/{{method}}.log",
    conda:
        "../envs/analysis.yaml"
    params:
        completion=SETTINGS.completion.model_dump(mode="json", include={"mf", "knn"}),
        tasks=TASKS,
        probes=SETTINGS.replay.probes,
        choice=SETTINGS.replay.probe_choice,
        seed=SETTINGS.seed,
    script:
        "../workflow_scripts/predict_rows.py"


rule replay_run:
    """Fine-tunes a model on one test task with replay by one strategy, and measures forgetting."""
    input:
        **FINE_TUNE,
        upstream=f"{RESULTS}/upstream.parquet",
        scores=lambda wildcards: FILES.replay_scores(
            wildcards.model, wildcards.strategy, wildcards.task
        ),
        measured=lambda wildcards: FILES.replay_equal_row(
            wildcards.model, wildcards.strategy, wildcards.task, wildcards.seed
        ),
    output:
        run=f"{RESULTS}/{{model}}/replay/{{strategy}}/{{task}}-seed{{seed}}.parquet",
    log:
        f"{LOGS}/replay_run/{{model}}/{{strategy}}/{{task}}-seed{{seed}}.log",
    group:
        RUNS_TOGETHER
    conda:
        "../envs/train.yaml"
    threads: TRAINING_THREADS
    resources:
        **ON_MODEL_ROW,
    params:
        recipe=TASK_RECIPE,
        scoring=SCORING,
        replay=lambda wildcards: PARAMETERS.replay(wildcards.strategy),
        checkpoint=unfinished,
    script:
        "../workflow_scripts/replay_run.py"


rule gather_replay:
    """Gathers the replay runs of a model into a table, and compares the strategies over tasks."""
    input:
        runs=lambda wildcards: FILES.replay_runs(wildcards.model),
    output:
        runs=f"{RESULTS}/{{model}}/replay.csv",
        comparison=f"{RESULTS}/{{model}}/replay_comparison.csv",
    log:
        f"{LOGS}/gather_replay/{{model}}.log",
    conda:
        "../envs/analysis.yaml"
    script:
        "../workflow_scripts/gather_replay.py"
