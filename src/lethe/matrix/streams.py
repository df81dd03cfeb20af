"""Z of any size, read from Parquet a chunk of examples at a time.

The contract is that of `lethe.matrix.forgetting_matrix.write`. Memory is a chunk plus M x M,
whatever N is; sums are float64.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lethe.errors import LetheError
from lethe.matrix.moments import CHUNK


class Stream:
    """Z on disk as chunks (M, n), float32, in the file's order of examples.

    Parameters
    ----------
    tasks
        The columns to read, in this order; none: all.

    Raises
    ------
    LetheError
        Naming the file, if it is no Z, or lacks one of the tasks.
    """

    def __init__(self, path: Path | str, tasks: Sequence[str] | None = None, chunk: int = CHUNK):
        self.path, self.chunk = Path(path), chunk
        with self._opened() as file:
            columns = [name for name in file.schema_arrow.names if name != "example_id"]
            self.examples: int = file.metadata.num_rows
        self.tasks = list(columns if tasks is None else tasks)
        if missing := [task for task in self.tasks if task not in columns]:
            raise LetheError(f"{path}: no column for the task(s) {missing}; seen: {columns}")
        if not self.tasks or not self.examples:
            raise LetheError(f"{path}: holds {len(columns)} tasks and {self.examples} examples")

    def __iter__(self) -> Iterator[np.ndarray]:
        try:
            with self._opened() as file:
                for batch in file.iter_batches(self.chunk, columns=self.tasks):
                    yield self._stacked(batch)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise LetheError(f"{self.path}: not a readable Z ({error})")

    def take(self, index: np.ndarray) -> np.ndarray:
        """Columns (M, k) of these examples; only the row groups that hold them are read."""
        index = np.asarray(index, dtype=int)
        if len(index) and not 0 <= index.min() <= index.max() < self.examples:
            raise LetheError(f"{self.path}: example numbers outside 0..{self.examples - 1}")
        values = np.empty((len(self.tasks), len(index)), dtype=np.float32)
        with self._opened() as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            ends = np.cumsum(sizes)
            groups = np.searchsorted(ends, index, side="right")
            for group in np.unique(groups):
                here = groups == group
                table = file.read_row_group(int(group), columns=self.tasks).combine_chunks()
                places = index[here] - (ends[group] - sizes[group])
                values[:, here] = self._stacked(table.to_batches()[0])[:, places]
        return values

    def _opened(self) -> pq.ParquetFile:
        try:
            # Reading ahead would keep the whole file in memory.
            return pq.ParquetFile(self.path, pre_buffer=False)
        except (OSError, pa.ArrowException) as error:
            raise LetheError(f"{self.path}: not a readable Z ({error}); delete it and run again")

    def _stacked(self, batch: pa.RecordBatch) -> np.ndarray:
        values = np.empty((len(self.tasks), len(batch)), dtype=np.float32)
        for row, task in enumerate(self.tasks):
            values[row] = batch[task].to_numpy(zero_copy_only=False)
        return values
