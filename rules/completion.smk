# Can the rest of a row be predicted from a few of its examples?
rule score_completion:
    """Scores every completion method on tasks whose rows it has not seen."""
    input:
        **FILES.upstream,
        matrix=f"{RESULTS}/{{model}}/Z.parquet",
        associations=lambda wildcards: list(
            FILES.associations(wildcards.model).values()
        ),
        sibling=lambda wildcards: FILES.sibling_matrix(wildcards.model),
        prior=lambda wildcards: FILES.prior_matrix(wildcards.model),
        embeddings=lambda wildcards: FILES.completion_embeddings(wildcards.model),
    output:
        scores=listed_table(f"{RESULTS}/{{model}}/completion.csv", PREDICTED),
    log:
        f"{LOGS}/score_completion/{{model}}.log",
    conda:
        "../envs/analysis.yaml"
    resources:
        **MACHINE.analysis(),
    params:
        completion=PARAMETERS.completion(),
        tasks=TASKS,
        # Not recorded (rules/common.smk).
        association_names=lambda wildcards, input: list(
            FILES.associations(wildcards.model)
        ),
    script:
        "../workflow_scripts/score_completion.py"


rule estimate_precision:
    """Estimates the precision to expect by number of probes and of training tasks."""
    input:
        matrix=f"{RESULTS}/{{model}}/Z.parquet",
    output:
        precision=listed_table(f"{RESULTS}/{{model}}/precision.csv", PREDICTED),
    log:
        f"{LOGS}/estimate_precision/{{model}}.log",
    conda:
        "../envs/analysis.yaml"
    resources:
        **MACHINE.analysis(),
    params:
        **PARAMETERS.precision(),
        tasks=TASKS,
    script:
        "../workflow_scripts/estimate_precision.py"
