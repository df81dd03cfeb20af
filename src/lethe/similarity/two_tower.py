"""Forgetting learned from frozen embeddings by two small networks (paper, section 5).

One network reads a task's vector, the other an example's. Each is Linear-ReLU-Linear, and the dot
product of their outputs is the predicted forgetting. They are trained on rows of Z by mean squared
error.
"""

from collections.abc import Sequence

import numpy as np
import torch

from lethe.config.similarity_settings import TwoTower
from lethe.matrix.forgetting_matrix import Matrix
from lethe.similarity.embeddings import Embeddings


def fit_and_predict(
    embeddings: Embeddings, z: np.ndarray, *, train: Sequence[int], settings: TwoTower
) -> np.ndarray:
    """Predicts forgetting (M, N) of every task by networks trained on the rows `train` of Z.

    The prediction is the mean over the networks of all seeds. Only `z[train]` is read, so no other
    row can leak into a prediction. For the tasks in `train` the result is a fit, not a prediction.

    Parameters
    ----------
    z
        (M, N) in nats, rows and columns in the order of the embeddings; NaN cells are masked.

    Raises
    ------
    ValueError
        If the shapes differ, a training row has no finite cell, or a vector is NaN.
    """
    shape = (len(embeddings.task_vectors), len(embeddings.example_vectors))
    if z.shape != shape:
        raise ValueError(f"Z has shape {z.shape}, but the embeddings have shape {shape}")
    rows = np.asarray(train, dtype=int)
    target = np.asarray(z[rows], dtype=np.float64)
    # Tasks are scaled by the training tasks alone, examples by all upstream examples.
    tasks = _standardised(embeddings.task_vectors, embeddings.task_vectors[rows])
    examples = _standardised(embeddings.example_vectors, embeddings.example_vectors)
    offset = _offset(target, settings.offset)
    # Division by the spread makes networks learn forgetting of any size at the same rate.
    spread = float(np.nanstd(target - offset)) or 1.0
    scaled = torch.as_tensor((target - offset) / spread, dtype=torch.float32)
    outputs = []
    for seed in settings.seeds:
        output = _train(
            tasks=tasks, examples=examples, rows=rows, target=scaled, settings=settings, seed=seed
        )
        outputs.append(output)
    return np.mean(outputs, axis=0) * spread + offset


def predict_unseen(
    embeddings: Embeddings, z: np.ndarray, *, train: Sequence[int], settings: TwoTower
) -> Matrix:
    """Predicts forgetting (M, N) of every task, each by networks that were not trained on its row.

    Tasks not in `train` are predicted by networks trained on all of `train`. Tasks in `train` are
    predicted in folds (every `folds`-th task), by networks trained on the other folds. So a slope
    fitted on training tasks is honest, and no row of a test task is read at all.
    """
    rows = np.asarray(train, dtype=int)
    predicted = fit_and_predict(embeddings, z, train=rows, settings=settings)
    folds = min(settings.folds, len(rows))
    for fold in range(folds):
        held_out = rows[fold::folds]
        others = np.setdiff1d(rows, held_out)
        from_others = fit_and_predict(embeddings, z, train=others, settings=settings)
        predicted[held_out] = from_others[held_out]
    return Matrix(predicted.astype(np.float32), embeddings.tasks, embeddings.example_ids)


def _standardised(vectors: np.ndarray, reference: np.ndarray) -> torch.Tensor:
    """Scales vectors (n, D) so that the reference (m, D) has mean 0 and variance 1."""
    if not np.isfinite(vectors).all():
        raise ValueError("a task or example has no embedding (NaN)")
    spread = reference.std(axis=0)
    scaled = (vectors - reference.mean(axis=0)) / np.where(spread > 0, spread, 1)
    return torch.as_tensor(scaled, dtype=torch.float32)


def _offset(target: np.ndarray, kind: str) -> np.ndarray:
    finite = np.isfinite(target)
    if not finite.any(axis=1).all():
        raise ValueError("a training row of Z has no finite cell")
    if kind == "none":
        return np.zeros((1, target.shape[1]))
    means = np.where(finite, target, 0).sum(axis=0) / np.maximum(finite.sum(axis=0), 1)
    return np.where(finite.any(axis=0), means, target[finite].mean())[None]


def _train(
    *,
    tasks: torch.Tensor,
    examples: torch.Tensor,
    rows: np.ndarray,
    target: torch.Tensor,
    settings: TwoTower,
    seed: int,
) -> np.ndarray:
    """Trains on all finite cells at once for `epochs` steps; predicts every task (M, N)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        task_tower = _tower(tasks, settings)
        example_tower = _tower(examples, settings)
    towers = torch.nn.ModuleList([task_tower, example_tower])
    optimizer = torch.optim.Adam(towers.parameters(), lr=settings.lr)
    finite = torch.isfinite(target)
    target = torch.where(finite, target, 0)
    count = finite.sum()
    for _ in range(settings.epochs):
        error = (task_tower(tasks[rows]) @ example_tower(examples).T - target) * finite
        loss = error.square().sum() / count
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        return (task_tower(tasks) @ example_tower(examples).T).double().numpy()


def _tower(vectors: torch.Tensor, settings: TwoTower) -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Linear(vectors.shape[1], settings.hidden),
        torch.nn.ReLU(),
        torch.nn.Linear(settings.hidden, settings.dims),
    )
