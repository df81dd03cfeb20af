# What the SLURM executor needs to be told about arrays; nothing on one machine.


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
        alike.setdefault(str(sorted(job.resources.items())), []).append(job)
    for part in alike.values():
        executor.run_mixed_jobs(part)


def nothing_to_wait_for(dag, name):
    return 0


submit_what_is_alike()
