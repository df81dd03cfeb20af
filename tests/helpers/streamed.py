"""A small Z on disk in several row groups, for tests of what is streamed."""

import numpy as np

from lethe.matrix import forgetting_matrix

TASKS, EXAMPLES, CHUNK = 9, 700, 64


def values():
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(TASKS, 3)) @ rng.normal(size=(3, EXAMPLES))
    noise = rng.uniform(0.05, 0.5, EXAMPLES) * rng.normal(size=(TASKS, EXAMPLES))
    return (0.3 + factors + noise).astype(np.float32)


def write(folder, z, row_group=200):
    names = [f"t{i}" for i in range(len(z))], [f"e{j}" for j in range(z.shape[1])]
    parts = [slice(start, start + row_group) for start in range(0, z.shape[1], row_group)]
    chunks = [(names[1][part], z[:, part]) for part in parts]
    forgetting_matrix.write_matrix_chunks(folder / "Z.parquet", names[0], chunks)
    return folder / "Z.parquet"


def holed(z):
    z = z.copy()
    z[2, 10:14], z[5, 300], z[:, 420] = np.nan, np.nan, np.nan
    z[0, 420] = 0.5
    return z
