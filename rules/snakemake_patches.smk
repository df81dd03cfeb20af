# Everything that overwrites Snakemake's own classes. It was written for the versions below. With any
# other version it does nothing and reports that once: results stay the same, but planning thousands
# of jobs takes longer, a job that fails leaves nothing of its earlier output, and on a cluster each
# row is a job of its own.

import gc
import inspect
from functools import lru_cache
from importlib import metadata

import snakemake.io
import snakemake.rules
from snakemake.common import get_function_params, overwrite_function_params
from snakemake.dag import ScriptProcessor
from snakemake.exceptions import WildcardError
from snakemake.executors.local import Executor as LocalExecutor
from snakemake.io import WILDCARD_REGEX, _IOFile
from snakemake.jobs import GroupJob
from snakemake.persistence import PersistenceBase
from snakemake.persistence.file import FilePersistence

from lethe.files import LARGE_FILE, cached_sha256
from lethe.jobs.owner import in_a_thread, remove_dead_locks, sign_locks
from snakemake.resources import Resource

WRITTEN_FOR = {
    "snakemake": "9.27",
    "snakemake-executor-plugin-slurm": "2.8",
    "snakemake-executor-plugin-slurm-jobstep": "0.6",
}


def other_versions():
    """Package -> its version, for the installed packages that these patches do not fit."""
    versions = {}
    for package, fitting in WRITTEN_FOR.items():
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        if not f"{version}.".startswith(f"{fitting}."):
            versions[package] = version
    return versions


OTHER_VERSIONS = other_versions()


def can_patch():
    return not OTHER_VERSIONS


# ---- speed: thousands of jobs are planned in seconds


def write_down_parameters():
    """Saves Snakemake from inspecting the parameters of the rules' functions for every job."""
    functions = [Resource.evaluate]
    for each in workflow.rules:
        functions += each.params
        functions += [getattr(file, "callable", file) for file in each.input]
        functions += [resource._evaluator for resource in each.resources.values()]
    for function in filter(inspect.isroutine, functions):
        overwrite_function_params(function, get_function_params(function))


def check_each_script_once(processor, job, check=ScriptProcessor.process_job):
    """Snakemake reads the script of every job to see that it exists.

    No script's name holds a wildcard, so that one look per rule is enough.
    """
    checked = vars(processor).setdefault("checked_rules", set())
    if job.rule.name not in checked:
        checked.add(job.rule.name)
        check(processor, job)


def split_patterns_once():
    """Makes Snakemake search a pattern for its wildcards once, not for every job and every file.

    The pattern holds the names of all tasks, so that the time would grow with the square of the
    task table.
    """
    snakemake.io.apply_wildcards = insert_wildcards
    snakemake.rules.apply_wildcards = insert_wildcards


@lru_cache(maxsize=10_000)
def split_pattern(pattern):
    """The names of the n wildcards of a pattern, after the n + 1 texts around them."""
    texts = []
    names = []
    end = 0
    for match in WILDCARD_REGEX.finditer(pattern):
        texts.append(pattern[end : match.start()])
        names.append(match["name"])
        end = match.end()
    return [*texts, pattern[end:]], names


def insert_wildcards(pattern, wildcards):
    """Does the same as Snakemake's `apply_wildcards`."""
    (first, *texts), names = split_pattern(pattern)
    parts = [first]
    for name, text in zip(names, texts):
        try:
            parts.append(str(wildcards[name]))
        except KeyError as error:
            raise WildcardError(str(error))
        parts.append(text)
    return "".join(parts)


# ---- groups: the jobs of one cluster job take turns, and each is tried again by itself


def take_turns():
    """Snakemake 9 starts the jobs of a group at once, and repeats all of them when one fails."""
    step = sys.modules.get("snakemake_executor_plugin_slurm_jobstep")
    if step is None or hasattr(GroupJob, "get_all_targets"):
        return
    step.Executor.additional_general_args = lambda _: "--keep-going --resources turn=1"
    GroupJob.get_all_targets = GroupJob.get_target_spec
    GroupJob.get_target_spec = missing_targets


def is_finished(job):
    return all(Path(file).exists() for file in job.output)


def missing_targets(group):
    """The targets of a group without those that an earlier attempt finished.

    Older files were removed when the group was submitted.
    """
    targets = group.get_all_targets()
    if not on_slurm():
        return targets
    missing = [
        target for target, job in zip(targets, group.jobs) if not is_finished(job)
    ]
    return missing or targets[:1]


def request_time_of_missing_jobs(group):
    """A group that is tried again needs the time of its unfinished jobs only."""
    all_layers = group.toposorted
    layers = []
    for layer in all_layers:
        missing = [job for job in layer if not is_finished(job)]
        if missing:
            layers.append(missing)
    if layers:
        group.toposorted = layers
        group._resources = None
        # Snakemake computes the resources at the first access and keeps them for this attempt.
        group.resources
        group.toposorted = all_layers


# ---- arrays: only jobs with the same resources are submitted together


def submit_equal_jobs_together():
    """The SLURM plugin 2.8 gives every job of an array the resources of the first.

    It also waits with jobs of a rule for as long as more of them are ready than `jobs` admits.
    """
    slurm = sys.modules.get("snakemake_executor_plugin_slurm")
    if slurm is None or hasattr(slurm.Executor, "run_mixed_jobs"):
        return
    slurm.Executor.run_mixed_jobs = slurm.Executor.run_jobs
    slurm.Executor.run_jobs = run_equal_jobs_together
    slurm.pending_jobs_for_rule = no_pending_jobs


def run_equal_jobs_together(executor, jobs):
    jobs_by_resources = {}
    for job in jobs:
        if job.attempt == 1:
            # An outdated file would pass for a current one if the job never started: with
            # keep-incomplete, Snakemake keeps it and records it with the new parameters.
            workflow.async_run(job.remove_existing_output())
        elif job.is_group():
            request_time_of_missing_jobs(job)
        resources = str(sorted(job.resources.items()))
        jobs_by_resources.setdefault(resources, []).append(job)
    for equal_jobs in jobs_by_resources.values():
        executor.run_mixed_jobs(equal_jobs)


def no_pending_jobs(dag, name):
    return 0


# ---- hashes: those of large files are computed once, also over several runs


def hash_large_files_once():
    """Snakemake hashes an input with a new time in every run, and in every dry run."""
    if hasattr(_IOFile, "compute_checksum"):
        return
    _IOFile.compute_checksum = _IOFile.checksum
    _IOFile.checksum = checksum_from_cache


async def checksum_from_cache(file, threshold=None, force=False, algorithm=None):
    if not (force or file.is_storage) and algorithm in (None, "sha256"):
        eligible = await file.is_checksum_eligible(threshold)
        if eligible and await file.size_local() >= LARGE_FILE:
            return f"sha256:{cached_sha256(Path(file))}"
    return await file.compute_checksum(threshold, force, algorithm)


# ---- records: what earlier versions recorded, and no result depends on


def read_records_of_earlier_versions():
    """Earlier versions recorded paths and settings on which no result depends."""
    if hasattr(PersistenceBase, "recorded_input"):
        return
    PersistenceBase.recorded_input = PersistenceBase.input
    PersistenceBase.recorded_params = PersistenceBase.params
    PersistenceBase.input = input_of_today
    PersistenceBase.params = parameters_of_today


def input_of_today(persistence, path):
    recorded = persistence.recorded_input(path)
    return recorded and SOURCES.earlier_inputs(str(path), recorded)


def parameters_of_today(persistence, path):
    recorded = persistence.recorded_params(path)
    return recorded and sorted(
        PARAMETERS.earlier_parameter(str(path), SOURCES.earlier_parameter(value))
        for value in recorded
    )


# ---- locks: that of a killed run is removed by the next one on the same machine


def remove_locks_of_killed_runs():
    """Snakemake's locks do not say who holds them, so that each needs --unlock after a kill -9."""
    if hasattr(FilePersistence, "write_unsigned_locks"):
        return
    FilePersistence.write_unsigned_locks = FilePersistence._write_locks
    FilePersistence._write_locks = write_signed_locks
    FilePersistence.holds_lock = FilePersistence.locked
    FilePersistence.locked = property(is_locked_by_a_living_run)


def write_signed_locks(persistence, kind, files):
    persistence.write_unsigned_locks(kind, files)
    if kind in persistence._lockfile:
        sign_locks([persistence._lockfile[kind]])


def is_locked_by_a_living_run(persistence):
    try:
        numbers = remove_dead_locks(Path(persistence._lockdir))
    except LetheError as error:
        raise WorkflowError(str(error))
    if numbers:
        logger.info(f"Removed the lock of process {numbers}, which was killed.")
    return persistence.holds_lock


def stop_without_waiting_for_itself():
    # Imported here because other versions have it elsewhere.
    from snakemake.scheduling.job_scheduler import JobScheduler

    # A signal can come while the main thread holds the scheduler's lock. Snakemake's handler, which
    # runs in this thread, would then wait for the lock forever.
    JobScheduler.exit_gracefully = in_a_thread(JobScheduler.exit_gracefully)


# ---- messages: a run that nobody reads any more ends, also if a job fails


def end_if_no_message_can_be_written():
    """Snakemake waits forever for a job whose failure it could not write into a closed pipe."""
    if hasattr(LocalExecutor, "report_end"):
        return
    LocalExecutor.report_end = LocalExecutor._callback
    LocalExecutor._callback = report_end_or_end_the_run


def report_end_or_end_the_run(executor, job_info, future):
    try:
        executor.report_end(job_info, future)
    except BrokenPipeError as error:
        executor.workflow.scheduler.executor_error_callback(error)


# ---- earlier outputs: those of a killed run are put back by the next one


def put_back_before_planning():
    """Snakemake has no hook between the reading of the rules and the look at the files."""
    build = workflow._build_dag

    def put_back_and_build():
        put_back_outputs_of_killed_runs()
        build()

    workflow._build_dag = put_back_and_build


# The graph of jobs is no garbage: nothing is collected before the first job starts (`onstart`).
if workflow.is_main_process:
    gc.disable()

if can_patch():
    write_down_parameters()
    ScriptProcessor.process_job = check_each_script_once
    split_patterns_once()
    take_turns()
    submit_equal_jobs_together()
    hash_large_files_once()
    read_records_of_earlier_versions()
    remove_locks_of_killed_runs()
    stop_without_waiting_for_itself()
    end_if_no_message_can_be_written()
    if workflow.is_main_process:
        put_back_before_planning()
elif workflow.is_main_process:
    versions = ", ".join(f"{name} {v}" for name, v in OTHER_VERSIONS.items())
    print(
        f"rules/snakemake_patches.smk does nothing, because it was not written for {versions} "
        f"but for {WRITTEN_FOR}. Planning takes longer, and a job that fails leaves nothing of its "
        "earlier output. On SLURM rows are not grouped; set "
        'slurm-array-jobs: "" in your profile, or a job may get the resources of another model.',
        file=sys.stderr,
    )
