# Can the rest of a row be predicted from a few of its examples?
rule score_completion:
    """Scores every completion method on tasks whose rows it has not seen."""
    input:
        **FILES.upstream,
        matrix=f"{RESULTS}/{{model}}/Z.parquet",
        associations=lambda wildcards: FILES.associations(wildcards.model),
    output:
        scores=f"{RESULTS}/{{model}}/completion.csv",
    log:
        f"{LOGS}/score_completion/{{model}}.log",
    conda:
        "../envs/analysis.yaml"
    params:
        completion=SETTINGS.completion.model_dump(mode="json"),
        tasks=TASKS,
    script:
        "../workflow_scripts/score_completion.py"
