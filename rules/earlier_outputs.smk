# Earlier outputs of jobs that run again. Snakemake removes the outputs of a job before it runs. If
# the job then failed, all that follows from it would have to be computed again, even after you undo
# the edit that broke it. Therefore the outputs of failed jobs are put back, with Snakemake's records
# of how they were made. By these records the next run sees what is outdated. A run that is killed
# leaves this to the next one.

from snakemake.io import IOFile
from snakemake.persistence import MetadataRecord

from lethe.jobs.earlier_outputs import EarlierOutputs

EARLIER = EarlierOutputs(Path(RESULTS, ".earlier"))
# Job -> its earlier outputs.
EARLIER_JOBS = {}


def keep_earlier_outputs():
    # Snakemake's records are written by its own methods, which another version may not have.
    if not can_patch():
        return
    jobs = [job for job in workflow.dag.needrun_jobs() if has_earlier_outputs(job)]
    kept = EARLIER.keep([records_of_outputs(job) for job in jobs])
    EARLIER_JOBS.update(zip(jobs, kept))


def has_earlier_outputs(job):
    """Whether all outputs of a job are whole files.

    A folder of weights would need its space twice. An output of a killed job is not whole.
    """
    return (
        bool(job.output)
        and not workflow.dag.reason(job).incomplete_output
        and all(Path(file).is_file() for file in job.output)
    )


def records_of_outputs(job):
    records = {str(file): workflow.persistence.metadata(file) for file in job.output}
    return {file: record and dict(record.items()) for file, record in records.items()}


def put_earlier_outputs_back():
    failed = [
        earlier
        for job, earlier in EARLIER_JOBS.items()
        if not workflow.dag.finished(job) and not earlier.has_outputs()
    ]
    count = put_back(failed)
    EARLIER.clear()
    if count:
        logger.info(
            f"The jobs that failed or were stopped have left {count} earlier output(s) as they were."
        )


def put_back_outputs_of_killed_runs():
    """Has to run before Snakemake looks at the files."""
    try:
        for owner, jobs in EARLIER.killed_runs():
            count = put_back([earlier for earlier in jobs if was_killed(earlier)])
            if count:
                logger.info(
                    f"Put back {count} earlier output(s) that process {owner.number}, which was "
                    "killed, has not made again."
                )
    except LetheError as error:
        raise WorkflowError(str(error))


def was_killed(earlier):
    """Whether a job had started and not ended when its run was killed."""
    persistence = workflow.persistence
    # A job of a cluster may still run, and would then write over what is put back.
    if persistence._get_external_jobids(earlier.records):
        return False
    return bool(
        not earlier.has_outputs()
        or persistence._filter_incomplete_keys(earlier.records)
    )


def put_back(jobs):
    """Puts the outputs of jobs back, with their records, and counts them."""
    persistence = workflow.persistence
    for earlier in jobs:
        earlier.put_back()
        for file, record in earlier.records.items():
            persistence.cleanup_metadata(IOFile(file))
            if record:
                persistence._write_record(file, MetadataRecord.model_validate(record))
    return sum(len(earlier.records) for earlier in jobs)
