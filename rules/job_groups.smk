# Which jobs are one job of a cluster: several rows, or replay runs, of a small model. On one machine
# no jobs are grouped.


resource_scopes:
    turn="local",


# Resources of rows and replay runs. Those of a group take turns.
ON_MODEL_ROW = ON_MODEL | {
    "runtime": lambda wildcards, attempt: MACHINE.row_minutes(wildcards.model, attempt),
    "turn": 1,
}


def group_of(model, kind):
    """The group of a job, or None if it stands alone.

    The cluster's job makes the jobs of a group one after the other (rules/snakemake_patches.smk).
    Without keep-incomplete, Snakemake would delete the finished files of a group when one of its
    jobs fails. No file of lethe is ever half-written, so that it is safe to keep them all.
    """
    jobs = MACHINE.rows_per_job(model)
    keeps_files = workflow.execution_settings.keep_incomplete
    if jobs == 1 or not (on_slurm() and keeps_files and can_patch()):
        return None
    name = f"{model}-{kind}"
    settings = workflow.group_settings
    # Snakemake takes the size of a group, and the resource `turn`, from the command line only.
    settings.group_components = {name: jobs, **settings.group_components}
    workflow.register_resource("turn", 1)
    return name


def group_of_row(wildcards):
    return group_of(wildcards.model, "rows")


def group_of_replay_run(wildcards):
    # A group starts when all of its jobs can. Strategies are apart, so that one that waits for a
    # prediction delays no other.
    return group_of(wildcards.model, f"replay-{wildcards.strategy}")


def on_slurm():
    return workflow.executor_plugin.name in ("slurm", "slurm-jobstep")


# Snakemake calls these for every job, many times: without groups there are no functions to call.
ROWS_TOGETHER = None
RUNS_TOGETHER = None
if any(MACHINE.rows_per_job(model) > 1 for model in MODELS):
    ROWS_TOGETHER = group_of_row
    RUNS_TOGETHER = group_of_replay_run
