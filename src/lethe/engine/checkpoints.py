"""The finished parts of an unfinished job, so that its next start continues from there.

A job on a large model runs for hours and may be stopped at any moment: killed, preempted, or out of
time. Its progress is written to disk every LETHE_CHECKPOINT_MINUTES (10) and at once on SIGTERM,
which a cluster sends before it takes away a job's machine, and on Ctrl-C (SIGINT). Short jobs write
nothing.
"""

import hashlib
import json
import logging
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lethe.engine import distributed
from lethe.errors import LetheError
from lethe.files import atomic_write

_log = logging.getLogger("lethe.engine")
# The signals that ask a job to save its progress and leave.
_REQUESTS = (signal.SIGTERM, signal.SIGINT)
# The status of a process that SIGTERM has ended.
STOPPED = 128 + signal.SIGTERM


def fingerprint(*values: Any) -> str:
    """SHA-256 of JSON values; only a job with the same fingerprint uses a checkpoint."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class Checkpoint:
    """A folder of parts, one safetensors file each, that a job saves when it is due.

    As a context manager it turns SIGTERM and SIGINT into a request that `due` reports; the job then
    saves and leaves. A second SIGINT interrupts at once. Without a folder nothing is ever due.

    A job announces each result that it has finished with `remember`. Finished parts are written
    when the next part is saved, once each, so that a short job writes nothing.

    Parameters
    ----------
    folder
        Folder of the parts; `clear` removes it when the job's result is on disk.
    made_from
        Fingerprint of everything that the job's result depends on. Parts with another fingerprint
        are not used.
    """

    def __init__(self, folder: Path | None = None, made_from: str = ""):
        self.folder = folder
        self.made_from = made_from
        self.seconds = 60 * float(os.environ.get("LETHE_CHECKPOINT_MINUTES", "10"))
        self.stopping = False
        self.leaving = False
        self._handlers: dict[int, Any] = {}
        self._saved = True
        self._last = time.monotonic()
        self._finished: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]] = {}

    def __enter__(self) -> Self:
        if self.folder is not None:
            for number in _REQUESTS:
                self._handlers[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_error: object) -> None:
        if self.folder is not None:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _frame: object) -> None:
        if number == signal.SIGINT:
            signal.signal(number, self._handlers[number])
        self.stopping = True

    def due(self) -> bool:
        """True if it is time to save, or to save and leave."""
        if self.folder is None:
            return False
        late = time.monotonic() - self._last >= self.seconds
        # Processes that share a job save together and leave together. A request that arrives from
        # here on waits for the next call, because the other processes do not know of it.
        request = distributed.all_max(2 if self.stopping else int(late))
        self.leaving = request == 2
        return request > 0

    def remember(
        self, part: str, tensors: dict[str, torch.Tensor], facts: dict[str, Any] | None = None
    ) -> None:
        """Announces a finished part, which the next `save` writes first.

        Parameters
        ----------
        tensors
            Held by reference; they must not change any more.
        facts
            JSON values that belong to the tensors.
        """
        if self.folder is not None:
            self._finished[part] = (tensors, facts or {})

    def save(
        self,
        part: str | None = None,
        tensors: dict[str, torch.Tensor] | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        """Writes the finished parts that are not on disk yet, then an unfinished one.

        Each part is written completely or not at all. If the disk refuses it (because it is full,
        for example), the job logs that and continues: its work is worth more than an interruption
        would cost.

        Parameters
        ----------
        part
            Name of the unfinished part; without it only finished parts are written.
        facts
            JSON values that belong to the tensors.
        """
        self._saved = True
        for name, (finished_tensors, finished_facts) in list(self._finished.items()):
            if self._write(name, finished_tensors, finished_facts):
                del self._finished[name]
        if part is not None:
            self._write(part, tensors or {}, facts or {})
        self._last = time.monotonic()

    def skip(self) -> None:
        """Takes the place of `save` for a state that cannot be saved; nothing is written."""
        self._saved = False
        self._last = time.monotonic()

    def _write(self, part: str, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> bool:
        """Writes one part; all processes take part and return the same."""
        full = {}
        for name, tensor in tensors.items():
            value = distributed.full_tensor(tensor.detach())
            if distributed.rank() == 0:
                full[name] = value.contiguous().cpu()
        written = True
        if distributed.rank() == 0:
            metadata = {"made_from": self.made_from, "facts": json.dumps(facts)}
            path = self._path(part)
            try:
                with atomic_write(path) as unfinished:
                    save_file(full, unfinished, metadata=metadata)
            except (OSError, SafetensorError) as error:
                written = False
                _log.warning(
                    "%s: could not be saved (%s); the job continues, but a restart repeats this "
                    "part",
                    path,
                    error,
                )
        # All processes wait here until it is written.
        written = all(distributed.all_gather(written))
        self._saved = self._saved and written
        return written

    def leave_if_asked(self, progress: str) -> None:
        """Ends the process if `due` reported a request to stop; call `save` or `skip` first.

        Parameters
        ----------
        progress
            How far the job is, for the log.

        Raises
        ------
        SystemExit
            With the status of a process that SIGTERM has ended.
        """
        if self.leaving:
            start = "continues from there" if self._saved else "uses earlier checkpoints, if any"
            _log.warning("stopped on request: %s; the next start %s", progress, start)
            raise SystemExit(STOPPED)

    def load(self, part: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """A part with its facts; None if it does not exist, is broken or belongs to another job."""
        if self.folder is None:
            return None
        try:
            with safe_open(self._path(part), framework="pt") as opened:
                metadata = opened.metadata() or {}
                if metadata.get("made_from") != self.made_from:
                    return None
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return tensors, json.loads(metadata["facts"])
        except (OSError, SafetensorError, ValueError, KeyError):
            # After a full disk, for example: the job starts from the beginning.
            return None

    def clear(self) -> None:
        """Removes all parts."""
        if self.folder is not None and distributed.rank() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, part: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{part}.safetensors"


def optimizer_tensors(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Trained weights, and AdamW's two averages and number of updates, by parameter name."""
    tensors = {}
    for name, parameter in _trained(model):
        tensors[f"weight/{name}"] = parameter
        # AdamW has no state for a parameter that no loss has reached.
        if not (state := optimizer.state.get(parameter)):
            continue
        tensors[f"exp_avg/{name}"] = state["exp_avg"]
        tensors[f"exp_avg_sq/{name}"] = state["exp_avg_sq"]
        tensors[f"updates/{name}"] = state["step"]
    return tensors


def restore_optimizer(
    model: Any, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], step: int
) -> None:
    """Restores the result of `optimizer_tensors` after `step` steps.

    AdamW makes no update in a step without a gradient. A checkpoint of an earlier version does not
    have the number of updates, and gets that of the steps.
    """
    restore_weights(model, tensors)
    for name, parameter in _trained(model):
        if f"exp_avg/{name}" not in tensors:
            continue
        state = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
        for key, average in state.items():
            distributed.copy_full(average, tensors[f"{key}/{name}"])
        updates = tensors.get(f"updates/{name}", torch.tensor(float(step)))
        optimizer.state[parameter] = {"step": updates, **state}


def weight_tensors(model: Any) -> dict[str, torch.Tensor]:
    """All weights by parameter name."""
    return {f"weight/{name}": parameter for name, parameter in model.named_parameters()}


def restore_weights(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Restores those weights that are among the tensors."""
    for name, parameter in model.named_parameters():
        if f"weight/{name}" in tensors:
            distributed.copy_full(parameter, tensors[f"weight/{name}"])


def write_weights(path: Path, model: Any) -> None:
    """Writes all weights by parameter name as one safetensors file, atomically."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[name] = parameter.detach().contiguous().cpu()
    with atomic_write(path) as part:
        save_file(tensors, part)


def read_weights(path: Path, model: Any) -> None:
    """Reads the weights of `write_weights` into a model of the same kind.

    Raises
    ------
    LetheError
        Naming the file, if it cannot be read or holds the weights of another kind of model.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise LetheError(
            f"{path}: not readable as weights ({error}); move it away and run again, so that the "
            "step that wrote it is repeated"
        )
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes:
        raise LetheError(
            f"{path}: holds the weights of another model ({len(tensors)} tensors, and this model "
            f"has {len(shapes)}, or their shapes differ); was the file copied? Move it away and "
            "run again, so that the step that wrote it is repeated"
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])


def _trained(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
