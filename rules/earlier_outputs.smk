# Earlier outputs of jobs that run again. Snakemake removes the outputs of a job before it runs. If
# the job then failed, all that follows from it would have to be computed again, even after you undo
# the edit that broke it. Therefore the outputs of failed jobs are put back, with Snakemake's records
# of how they were made. By these records the next run sees what is outdated.

from lethe.jobs.earlier_outputs import EarlierOutputs

EARLIER = EarlierOutputs(Path(RESULTS, ".earlier"))
# Job -> the records of its earlier outputs.
EARLIER_RECORDS = {}


def keep_earlier_outputs():
    # Snakemake's records are written by its own methods, which another version may not have.
    if not can_patch():
        return
    for job in workflow.dag.needrun_jobs():
        # A folder of weights would need its space twice. An output of a killed job is not whole.
        if (
            not job.output
            or workflow.dag.reason(job).incomplete_output
            or not all(Path(file).is_file() for file in job.output)
        ):
            continue
        EARLIER.keep(map(Path, job.output))
        EARLIER_RECORDS[job] = {
            file: workflow.persistence.metadata(file) for file in job.output
        }


def put_earlier_outputs_back():
    persistence = workflow.persistence
    count = 0
    for job, records in EARLIER_RECORDS.items():
        if workflow.dag.finished(job) or not EARLIER.put_back([*map(Path, records)]):
            continue
        count += len(records)
        for file, record in records.items():
            persistence.cleanup_metadata(file)
            if record:
                persistence._write_record(persistence._get_key(file), record)
    EARLIER.clear()
    if count:
        logger.info(
            f"The jobs that failed or were stopped have left {count} earlier output(s) as they were."
        )
