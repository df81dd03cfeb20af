# The report: figures, and one page that holds everything.
rule draw_plots:
    """Draws every figure of the report, as PNG and as SVG."""
    input:
        **FILES.figure_tables(),
    output:
        png=[listed_figure(path) for path in FILES.plots("png")],
        svg=FILES.plots("svg"),
    log:
        f"{LOGS}/draw_plots.log",
    conda:
        "../envs/analysis.yaml"
    resources:
        **MACHINE.analysis(),
    params:
        figures=FILES.figures,
        models=FILES.models,
        tasks=TASKS,
    script:
        "../workflow_scripts/draw_plots.py"


rule write_report:
    """Writes the experiment's page out of all tables and figures; it needs no other file."""
    input:
        **FILES.report_tables(),
        figures=FILES.plots("png"),
    output:
        **listed_tables(FILES.left_out, OVERVIEW),
        page=listed(f"{RESULTS}/report.html", OVERVIEW, "page"),
    log:
        f"{LOGS}/write_report.log",
    conda:
        "../envs/analysis.yaml"
    resources:
        **MACHINE.analysis(),
    params:
        **PARAMETERS.left_out(),
        **FILES.finished_ledger(),
        figures=FILES.figures,
        models=FILES.models,
        tasks=TASKS,
        settings=PARAMETERS.settings(),
        # No inputs, because rows of an older version have no such files.
        token_files=FILES.token_files(),
    script:
        "../workflow_scripts/write_report.py"
