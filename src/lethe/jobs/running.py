"""Runs the function of a workflow script: here, in a fork of the warm server, or in shards."""

import os
import sys
from collections.abc import Callable
from typing import Any

from lethe.jobs import launch, owner, process, warm


def set_job_environment(library: str) -> None:
    """Sets the environment variables that the processes of jobs inherit.

    Jobs import the library from the folder `library`, in conda environments as well. On Linux, jobs
    end when this process is gone (`lethe.jobs.owner`), and may start warm (`lethe.jobs.warm`).
    Libraries of other systems do not survive a fork.
    """
    others = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([library, *others]))
    # Progress bars of transformers and of the hub appear if something takes longer than this.
    os.environ.setdefault("TQDM_DELAY", "5")
    # Jobs run beside each other; tokenizers need no threads of their own.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if sys.platform == "linux":
        owner.watch_command()
        os.environ[owner.VARIABLE] = owner.Owner.of_process(os.getpid()).variable()
        if os.environ.get("LETHE_WARM") != "0":
            os.environ["LETHE_WARM"] = str(warm.server_owner())


def run(
    function: Callable[..., None],
    log: str,
    *,
    warm_start: bool = False,
    processes: int = 1,
    **arguments: Any,
) -> None:
    """Calls `function(**arguments)` of a workflow script as a job.

    Everything on stderr also goes to the log. A LetheError ends the job with its message alone. The
    job ends, as on SIGTERM, when the Snakemake process that started it is gone.

    Parameters
    ----------
    warm_start
        Start as a fork of a process that has already imported torch and transformers. The result
        is the same.
    processes
        Processes that share the job's model, one per GPU.
    arguments
        Arguments of `function`. With `warm_start` or several processes, values that
        `lethe.jobs.calls.to_json` can hand over.

    Raises
    ------
    SystemExit
        If the job fails in another process, or with a LetheError.
    """
    owner.watch_owner()
    if processes > 1:
        launch.run_in_shards(function, log, processes, **arguments)
    elif not (warm_start and warm.run_in_fork(function, log, **arguments)):
        process.run_in_process(function, log, **arguments)
