# A Z that was measured elsewhere.
rule import_matrix:
    """Imports a matrix of your own as Z, and reports what it holds and what looks wrong."""
    input:
        own=lambda wildcards: EXPERIMENT.own_matrices[wildcards.model],
        meta=lambda wildcards: FILES.row_names(wildcards.model),
        examples=(SETTINGS.matrix and SETTINGS.matrix.examples) or [],
    output:
        matrix=f"{RESULTS}/{{model}}/Z.parquet",
        sanity=f"{RESULTS}/{{model}}/sanity.json",
    log:
        f"{LOGS}/import_matrix/{{model}}.log",
    conda:
        "../envs/analysis.yaml"
    resources:
        **MACHINE.analysis(),
    params:
        tasks=list(EXPERIMENT.tasks),
        layout=SETTINGS.matrix and SETTINGS.matrix.layout,
    script:
        "../workflow_scripts/import_matrix.py"


if FILES.upstream:

    rule import_texts:
        """Imports the texts and domains of the examples of matrices of your own."""
        input:
            texts=SETTINGS.own_texts,
            matrices=FILES.of_models("Z.parquet"),
        output:
            upstream=f"{RESULTS}/upstream.parquet",
        log:
            f"{LOGS}/import_texts.log",
        conda:
            "../envs/analysis.yaml"
        resources:
            **MACHINE.analysis(),
        script:
            "../workflow_scripts/import_texts.py"
