# Not part of `all`: `snakemake plan` before a run, `snakemake ledger` after it.
rule calibrate_model:
    input:
        model=calibrated_model,
        upstream=f"{RESULTS}/upstream.parquet",
        train=train_files(),
        evaluation=[path.replace("train.", "eval.") for path in train_files()],
    output:
        calibration=f"{RESULTS}/{{model}}/calibration.json",
    log:
        f"{LOGS}/calibrate_model/{{model}}.log",
    conda:
        "../envs/train.yaml"
    threads: same_for_all(job_threads)
    resources:
        gpu=same_for_all(gpus),
        mem_mb=memory,
        runtime=minutes,
        slurm_partition=same_for_all(partition),
    params:
        model=model_settings,
        recipe=same_for_all(recipe),
        scoring=SCORING,
        plan=SETTINGS.plan.model_dump(mode="json", include={"steps", "examples"}),
    script:
        "../workflow_scripts/calibrate_model.py"


rule plan:
    input:
        upstream=f"{RESULTS}/upstream.parquet",
        calibrations=expand(f"{RESULTS}/{{model}}/calibration.json", model=MODELS),
    output:
        plan=f"{RESULTS}/plan.csv",
        ways=f"{RESULTS}/new_task.csv",
        text=f"{RESULTS}/plan.txt",
    log:
        f"{LOGS}/plan.log",
    conda:
        "../envs/train.yaml"
    params:
        models=planned_models(),
        sizes=planned_sizes(),
        prices=SETTINGS.plan.model_dump(mode="json", exclude={"steps", "examples"}),
    script:
        "../workflow_scripts/plan.py"


rule ledger:
    input:
        plan=f"{RESULTS}/plan.csv",
        score_base=tables("base.parquet"),
        measure_row=rows_of_all(row_files),
        repeat_row=rows_of_all(repeat_files) if NOISE else [],
        replay_run=rows_of_all(replay_files) if STRATEGIES else [],
    output:
        ledger=f"{RESULTS}/ledger.csv",
        text=f"{RESULTS}/ledger.txt",
    log:
        f"{LOGS}/ledger.log",
    conda:
        "../envs/train.yaml"
    script:
        "../workflow_scripts/ledger.py"
