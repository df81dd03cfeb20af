"""What an unfinished job has done, so that the next start goes on from there.

A job on a large model runs for hours and may be stopped at any moment: killed, preempted, over its
time. What it has goes to disk every LETHE_CHECKPOINT_MINUTES (10), and at once on SIGTERM, which a
cluster sends before it takes a job's machine away. Short jobs write nothing.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lethe.engine import distributed
from lethe.files import atomic_write

# The status of a process that SIGTERM has ended.
STOPPED = 128 + signal.SIGTERM


def fingerprint(*made_from: Any) -> str:
    """SHA-256 of JSON values: a checkpoint is only used by a job that has the same."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


class Checkpoint:
    """A folder of parts, safetensors each, that a job saves when it is due.

    As a context it turns SIGTERM into a wish that `due` knows of; `save` then leaves. Without a
    folder nothing is ever due.

    Parameters
    ----------
    folder
        Where the parts are kept; removed by `clear`, when the job's result is on disk.
    made_from
        Fingerprint of all that the job's result depends on. Parts with another are not used.
    """

    def __init__(self, folder: Path | None, made_from: str = ""):
        self.folder, self.made_from = folder, made_from
        self.seconds = 60 * float(os.environ.get("LETHE_CHECKPOINT_MINUTES", "10"))
        self.stopping = self.leaving = False
        self._saved = True
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        if self.folder is not None:
            self._handler = signal.signal(signal.SIGTERM, self._stop)
        return self

    def __exit__(self, *_error: object) -> None:
        if self.folder is not None:
            signal.signal(signal.SIGTERM, self._handler)

    def _stop(self, *_signal: object) -> None:
        self.stopping = True

    def due(self) -> bool:
        """True if it is time to save, or to save and leave."""
        if self.folder is None:
            return False
        late = time.monotonic() - self._last >= self.seconds
        # Processes that share a job save together, and leave together. Who is asked to stop from
        # here on waits for the next time: the others have not heard of it.
        wish = distributed.largest(2 if self.stopping else int(late))
        self.leaving = wish == 2
        return wish > 0

    def save(self, part: str, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
        """Writes a part, whole or not at all.

        Where that cannot be done (a disk that is full) the job goes on, and says so: what it has
        done is worth more than what an interruption would cost.

        Parameters
        ----------
        facts
            JSON values that belong to the tensors.
        """
        kept = {}
        for name, tensor in tensors.items():
            full = distributed.whole(tensor.detach())
            if distributed.rank() == 0:
                kept[name] = full.contiguous().cpu()
        metadata = {"made_from": self.made_from, "facts": json.dumps(facts)}
        if distributed.rank() == 0:
            path = self._path(part)
            try:
                with atomic_write(path) as unfinished:
                    save_file(kept, unfinished, metadata=metadata)
                self._saved = True
            except (OSError, SafetensorError) as error:
                self._saved = False
                print(f"{path}: not saved, the job goes on without ({error})", file=sys.stderr)
        distributed.gathered(None)  # Nobody goes on before it is written.
        self._last = time.monotonic()

    def leave_if_asked(self, done: str) -> None:
        """Ends the process if `due` found it asked to stop; all it has must have been saved.

        Raises
        ------
        SystemExit
            With the status of a process that SIGTERM has ended.
        """
        if self.leaving:
            then = "goes on from there" if self._saved else "has what was saved before, if anything"
            print(f"stopped as asked: {done}; the next start {then}", file=sys.stderr)
            raise SystemExit(STOPPED)

    def load(self, part: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """A part with its facts; None where there is none, or it is of another job or broken."""
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
            # A disk that was full, say: the job starts over.
            return None

    def holds(self, part: str) -> bool:
        """True if there is this part of this job; its tensors are not read."""
        if self.folder is None:
            return False
        try:
            with safe_open(self._path(part), framework="pt") as opened:
                return (opened.metadata() or {}).get("made_from") == self.made_from
        except (OSError, SafetensorError):
            return False

    def clear(self) -> None:
        """Removes all parts."""
        if self.folder is not None and distributed.rank() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, part: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{part}.safetensors"


def optimizer_tensors(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Trained weights and AdamW's two averages, by parameter name."""
    tensors = {}
    for name, parameter in _trained(model):
        tensors[f"weight/{name}"] = parameter
        # AdamW keeps nothing of a parameter that no loss has reached.
        if not (state := optimizer.state.get(parameter)):
            continue
        tensors[f"exp_avg/{name}"] = state["exp_avg"]
        tensors[f"exp_avg_sq/{name}"] = state["exp_avg_sq"]
    return tensors


def restore_optimizer(
    model: Any, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], step: int
) -> None:
    """Puts back what `optimizer_tensors` gave after `step` steps."""
    restore_weights(model, tensors)
    for name, parameter in _trained(model):
        if f"exp_avg/{name}" not in tensors:
            continue
        state = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
        for key, average in state.items():
            distributed.put(average, tensors[f"{key}/{name}"])
        optimizer.state[parameter] = {"step": torch.tensor(float(step)), **state}


def weight_tensors(model: Any) -> dict[str, torch.Tensor]:
    """All weights by parameter name."""
    return {f"weight/{name}": parameter for name, parameter in model.named_parameters()}


def restore_weights(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Puts back the weights that are there."""
    for name, parameter in model.named_parameters():
        if f"weight/{name}" in tensors:
            distributed.put(parameter, tensors[f"weight/{name}"])


def _trained(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
