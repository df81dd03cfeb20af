# What do the components of Z stand for?
rule read_components:
    """Lists the tasks, texts and domains of each component of Z, and joins the tasks to a tree."""
    input:
        **FILES.upstream,
        matrix=f"{RESULTS}/{{model}}/Z.parquet",
    output:
        **listed_tables(FILES.component_tables(f"{RESULTS}/{{model}}"), FORGOTTEN),
    log:
        f"{LOGS}/read_components/{{model}}.log",
    conda:
        "../envs/analysis.yaml"
    resources:
        **MACHINE.analysis(),
    script:
        "../workflow_scripts/read_components.py"
