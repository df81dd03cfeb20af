rule score_completion:
    input:
        matrix=f"{RESULTS}/{{model}}/Z.parquet",
        upstream=f"{RESULTS}/upstream.parquet" if MODELS else [],
        associations=association_files,
    output:
        scores=f"{RESULTS}/{{model}}/completion.csv",
    log:
        f"{LOGS}/score_completion/{{model}}.log",
    conda:
        "../envs/analysis.yaml"
    params:
        completion=SETTINGS.completion.model_dump(mode="json"),
        tasks=task_table(),
    script:
        "../workflow_scripts/score_completion.py"


rule predict_rows:
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
        tasks=task_table(),
        probes=SETTINGS.replay.probes if SETTINGS.replay else None,
        choice=SETTINGS.replay.probe_choice if SETTINGS.replay else None,
        seed=SETTINGS.seed,
    script:
        "../workflow_scripts/predict_rows.py"
