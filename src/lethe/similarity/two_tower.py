"""Forgetting learned from frozen embeddings by two small networks (paper, section 5).

One network reads a task's vector, the other an example's; each is Linear-ReLU-Linear, and the dot
product of what they say is the predicted forgetting. Trained on rows of Z by mean squared error.
"""

from collections.abc import Sequence

import numpy as np
import torch

from lethe.config.similarity_settings import TwoTower
from lethe.matrix.forgetting_matrix import Matrix
from lethe.similarity.embeddings import Embeddings


def predict(
    embeddings: Embeddings, z: np.ndarray, train: Sequence[int], settings: TwoTower
) -> np.ndarray:
    """Forgetting (M, N) of every task, from networks trained on the rows `train` of Z only.

    The mean over the networks of all seeds. Only `z[train]` is ever read, so that no other row
    can leak into a prediction; predictions of the tasks in `train` are fits, not predictions.

    Parameters
    ----------
    z
        (M, N) in nats, rows and columns in the order of the embeddings; NaN cells are masked.

    Raises
    ------
    ValueError
        If the shapes do not fit, a training row has no known cell, or a vector is NaN.
    """
    shape = (len(embeddings.task_vectors), len(embeddings.example_vectors))
    if z.shape != shape:
        raise ValueError(f"Z has shape {z.shape}, the embeddings are of {shape}")
    rows = np.asarray(train, dtype=int)
    target = np.asarray(z[rows], dtype=np.float64)
    tasks, examples = _standardised(embeddings, rows)
    offset = _offset(target, settings.offset)
    # Divided by its spread, forgetting of any size is learned at the same rate.
    spread = float(np.nanstd(target - offset)) or 1.0
    scaled = torch.as_tensor((target - offset) / spread, dtype=torch.float32)
    outputs = [_train(tasks, examples, rows, scaled, settings, seed) for seed in settings.seeds]
    return np.mean(outputs, axis=0) * spread + offset


def predict_unseen(
    embeddings: Embeddings, z: np.ndarray, train: Sequence[int], settings: TwoTower
) -> Matrix:
    """Forgetting (M, N) of every task, each by networks that have not seen its row.

    Tasks not in `train` are predicted by networks trained on all of `train`; those in `train` in
    folds (every `folds`-th task), by networks trained on the other folds. So a slope fitted on
    training tasks is honest, and no row of a test task is read at all.
    """
    rows = np.asarray(train, dtype=int)
    predicted = predict(embeddings, z, rows, settings)
    folds = min(settings.folds, len(rows))
    for fold in range(folds):
        held = rows[fold::folds]
        predicted[held] = predict(embeddings, z, np.setdiff1d(rows, held), settings)[held]
    return Matrix(predicted.astype(np.float32), embeddings.tasks, embeddings.example_ids)


def _standardised(embeddings: Embeddings, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors with mean 0 and variance 1 a dimension, over upstream and over training tasks."""
    pairs = (
        (embeddings.task_vectors, embeddings.task_vectors[rows]),
        (embeddings.example_vectors, embeddings.example_vectors),
    )
    done = []
    for vectors, known in pairs:
        if not np.isfinite(vectors).all():
            raise ValueError("a task or example has no embedding (NaN)")
        spread = known.std(axis=0)
        scaled = (vectors - known.mean(axis=0)) / np.where(spread > 0, spread, 1)
        done.append(torch.as_tensor(scaled, dtype=torch.float32))
    return done[0], done[1]


def _offset(target: np.ndarray, kind: str) -> np.ndarray:
    if not np.isfinite(target).any(axis=1).all():
        raise ValueError("a training row of Z has no known cell")
    if kind == "none":
        return np.zeros((1, target.shape[1]))
    known = np.isfinite(target)
    means = np.where(known, target, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(known.any(axis=0), means, target[known].mean())[None]


def _train(
    tasks: torch.Tensor,
    examples: torch.Tensor,
    rows: np.ndarray,
    target: torch.Tensor,
    settings: TwoTower,
    seed: int,
) -> np.ndarray:
    """Trains on all known cells at once, `epochs` times; predicts every task (M, N)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        towers = torch.nn.ModuleList([_tower(tasks, settings), _tower(examples, settings)])
    optimizer = torch.optim.Adam(towers.parameters(), lr=settings.lr)
    known = torch.isfinite(target)
    target, count = torch.where(known, target, 0), known.sum()
    for _ in range(settings.epochs):
        error = (towers[0](tasks[rows]) @ towers[1](examples).T - target) * known
        loss = error.square().sum() / count
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        return (towers[0](tasks) @ towers[1](examples).T).double().numpy()


def _tower(vectors: torch.Tensor, settings: TwoTower) -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Linear(vectors.shape[1], settings.hidden),
        torch.nn.ReLU(),
        torch.nn.Linear(settings.hidden, settings.dims),
    )
