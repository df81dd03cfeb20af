"""Reads a Z of any size from Parquet, one chunk of examples at a time.

The file contract is that of `lethe.matrix.forgetting_matrix.write_matrix`. Memory is one chunk
plus M x M, whatever N is. Sums are float64.
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
        The columns to read, in this order; by default all.
    chunk
        Examples per chunk.

    Raises
    ------
    LetheError
        Naming the file, if it is not a Z or lacks one of the tasks.
    """

    def __init__(self, path: Path | str, tasks: Sequence[str] | None = None, chunk: int = CHUNK):
        self.path = Path(path)
        self.chunk = chunk
        with self._open() as file:
            columns = [name for name in file.schema_arrow.names if name != "example_id"]
            self.examples: int = file.metadata.num_rows
        self.tasks = list(columns if tasks is None else tasks)
        missing = [task for task in self.tasks if task not in columns]
        if missing:
            raise LetheError(f"{path}: no column for the task(s) {missing}; seen: {columns}")
        if not self.tasks or not self.examples:
            raise LetheError(f"{path}: holds {len(columns)} tasks and {self.examples} examples")

    def __repr__(self) -> str:
        return f"Stream({str(self.path)!r}, {len(self.tasks)} tasks x {self.examples} examples)"

    def __iter__(self) -> Iterator[np.ndarray]:
        try:
            with self._open() as file:
                for batch in file.iter_batches(self.chunk, columns=self.tasks):
                    yield self._stack(batch)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise LetheError(f"{self.path}: not a readable Z ({error})")

    def take(self, index: np.ndarray) -> np.ndarray:
        """Columns (M, k) of the examples with these numbers.

        Only the row groups that hold them are read.

        Raises
        ------
        LetheError
            If a number is out of range.
        """
        index = np.asarray(index, dtype=int)
        if len(index) and not 0 <= index.min() <= index.max() < self.examples:
            raise LetheError(f"{self.path}: example numbers outside 0..{self.examples - 1}")
        values = np.empty((len(self.tasks), len(index)), dtype=np.float32)
        with self._open() as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            ends = np.cumsum(sizes)
            groups = np.searchsorted(ends, index, side="right")
            for group in np.unique(groups):
                in_group = groups == group
                table = file.read_row_group(int(group), columns=self.tasks)
                offsets = index[in_group] - (ends[group] - sizes[group])
                rows = table.take(offsets).combine_chunks()
                values[:, in_group] = self._stack(rows.to_batches()[0])
        return values

    def _open(self) -> pq.ParquetFile:
        try:
            # Reading ahead would keep the complete file in memory.
            return pq.ParquetFile(self.path, pre_buffer=False)
        except (OSError, pa.ArrowException) as error:
            raise LetheError(
                f"{self.path}: not a readable Z ({error}); if lethe made the file, move it away "
                "and run again"
            )

    def _stack(self, batch: pa.RecordBatch) -> np.ndarray:
        values = np.empty((len(self.tasks), len(batch)), dtype=np.float32)
        for row, task in enumerate(self.tasks):
            values[row] = batch[task].to_numpy(zero_copy_only=False)
        return values
