"""The Gaussian method with training tasks weighted by how much they resemble the new one."""

import numpy as np

from lethe.completion.foldin import FoldInModel, Prior, Solver
from lethe.completion.gaussian import Gaussian


class LocalGaussian(Gaussian):
    """Gaussian completion in two steps: a first prediction decides which tasks count more.

    With D_i the squared distance over all examples, up to an offset, of training row i from the
    first prediction, task i gets the weight

        a_i = (1 - mu) / M + mu s_i,    s_i proportional to exp(-(D_i - min D) / (tau min D)).

    The second step has the weighted mean and covariance of the rows as its prior, and the noise,
    its factor, the offset and the scale of the first. It has no intervals of its own.

    Parameters
    ----------
    noise
        As in `Gaussian`.
    tau
        Distance, in units of the nearest task's, over which weights fall by e.
    mu
        Share of the weights that depends on distances; 0 is `Gaussian`.
    """

    has_intervals = False

    def __init__(self, noise: float | None = None, tau: float = 1.0, mu: float = 0.5):
        super().__init__(noise)
        self.tau = tau
        self.mu = mu

    def refine(
        self,
        model: FoldInModel,
        weights: np.ndarray,
        probed: np.ndarray,
        values: np.ndarray,
        candidate: float,
    ) -> np.ndarray:
        """Solves once more for each row, with the tasks near its first prediction weighted up."""
        prior, noise = model.parts
        variance = noise.variance(probed[:-1])
        refined = np.empty_like(weights)
        for number, first in enumerate(weights):
            shares = self._shares(model.total, first)
            local = _weighted_prior(shares, common=prior.basis[:2])
            solver = Solver(local, probed, noise=variance)
            refined[number] = solver.weights(values[[number]], [candidate])[0, 0]
        return refined

    def _shares(self, total: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Weights (M,) of the training tasks; they sum to 1."""
        tasks = len(total) - 1
        # Gram matrix of the rows minus their means over examples.
        centred = total - np.outer(total[:, -1], total[:, -1]) / total[-1, -1]
        differences = np.eye(tasks, tasks + 1) - weights
        distances = np.maximum(((differences @ centred) * differences).sum(axis=1), 0.0)
        nearest = max(float(distances.min()), 1e-300)
        similarity = np.exp(-(distances - distances.min()) / (self.tau * nearest))
        return (1 - self.mu) / tasks + self.mu * similarity / similarity.sum()


def _weighted_prior(shares: np.ndarray, common: np.ndarray) -> Prior:
    """Weighted mean and covariance of the training rows, beside the directions `common` (2, M + 1).

    With equal shares it is the prior of `Gaussian`.
    """
    tasks = len(shares)
    mean = np.append(shares, 0.0)
    directions = np.sqrt(shares)[:, None] * (np.eye(tasks, tasks + 1) - mean)
    return Prior(mean=mean, basis=np.vstack([common, directions]))
