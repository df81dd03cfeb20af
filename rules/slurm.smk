# What a cluster needs to be told beyond the rules: which jobs go in together. Nothing on one machine.

from snakemake.jobs import GroupJob


resource_scopes:
    turn="local",


def together(name):
    """How many rows of a model one job makes: some of a small one's, or start-up would dominate."""
    small = SETTINGS.models[name].source == "scratch"
    return SETTINGS.models[name].resources.together or (8 if small else 1)


def rows_of(wildcards):
    return group_of(wildcards.model, "rows")


def runs_of(wildcards):
    # A group starts when all of it can: what needs a prediction holds up no other strategy.
    return group_of(wildcards.model, f"replay-{wildcards.strategy}")


# Snakemake asks for the group of every job, again and again.
SOME = any(together(name) > 1 for name in MODELS)
ROWS_TOGETHER, RUNS_TOGETHER = (rows_of, runs_of) if SOME else (None, None)


def group_of(model, kind):
    """Jobs of a group are one job of the cluster, which makes one after the other.

    Without keep_incomplete Snakemake would remove what the others have finished when one fails. A
    file of lethe's is whole or not there.
    """
    count, kept = together(model), workflow.execution_settings.keep_incomplete
    if count == 1 or not on_slurm() or not kept:
        return None
    name, settings = f"{model}-{kind}", workflow.group_settings
    # Known on the command line only, as is that jobs of a group take turns.
    settings.group_components = {name: count, **settings.group_components}
    workflow.register_resource("turn", 1)
    return name


def take_turns():
    """A job of a group that fails takes no other with it.

    Snakemake 9 starts the jobs of a group at once, and all of them anew when one has failed.
    """
    step = sys.modules.get("snakemake_executor_plugin_slurm_jobstep")
    if step is None or hasattr(GroupJob, "get_all_targets"):
        return
    step.Executor.additional_general_args = lambda _: "--keep-going --resources turn=1"
    GroupJob.get_all_targets = GroupJob.get_target_spec
    GroupJob.get_target_spec = targets_that_are_missing


def on_slurm():
    return workflow.executor_plugin.name in ("slurm", "slurm-jobstep")


def is_made(job):
    return all(Path(file).exists() for file in job.output)


def targets_that_are_missing(group):
    """Of a group that is tried again, or was preempted and starts again, what is finished stays.

    What was there before has been removed when it was submitted.
    """
    targets = group.get_all_targets()
    if not on_slurm():
        return targets
    missing = [spec for spec, job in zip(targets, group.jobs) if not is_made(job)]
    return missing or targets[:1]


def ask_for_what_is_missing(group):
    """A group that is tried again needs the time of the jobs that are left."""
    whole, left = group.toposorted, []
    for layer in whole:
        left += (
            [missing] if (missing := [job for job in layer if not is_made(job)]) else []
        )
    if left:
        group.toposorted, group._resources = left, None
        # Looked up once for this attempt.
        group.resources
        group.toposorted = whole


def submit_what_is_alike():
    """Arrays are of jobs that ask for the same, and take whatever jobs were chosen together.

    snakemake-executor-plugin-slurm 2.8 gives every job of an array what the first one asks for,
    and never submits jobs as long as more like them are ready than `jobs` lets in.
    """
    slurm = sys.modules.get("snakemake_executor_plugin_slurm")
    if slurm is None or hasattr(slurm.Executor, "run_mixed_jobs"):
        return
    slurm.Executor.run_mixed_jobs = slurm.Executor.run_jobs
    slurm.Executor.run_jobs = run_jobs_that_are_alike
    slurm.pending_jobs_for_rule = nothing_to_wait_for


def run_jobs_that_are_alike(executor, jobs):
    alike = {}
    for job in jobs:
        if job.attempt == 1:
            # Else what is outdated would pass for current, should the job never start: with
            # keep-incomplete Snakemake keeps it, and records it as made with the new parameters.
            workflow.async_run(job.remove_existing_output())
        elif job.is_group():
            ask_for_what_is_missing(job)
        alike.setdefault(str(sorted(job.resources.items())), []).append(job)
    for part in alike.values():
        executor.run_mixed_jobs(part)


def nothing_to_wait_for(dag, name):
    return 0


submit_what_is_alike()
take_turns()
