"""Completion of Z: predict a task's whole row from a few probed examples."""

from lethe.completion.additive import Additive, Affine
from lethe.completion.base import Completer
from lethe.completion.baselines import ColumnMean, Constant, Random
from lethe.completion.gaussian import Gaussian
from lethe.completion.knn import KNN
from lethe.completion.matrix_factorisation import MatrixFactorisation

METHODS: dict[str, type[Completer]] = {
    "random": Random,
    "constant": Constant,
    "column_mean": ColumnMean,
    "additive": Additive,
    "affine": Affine,
    "knn": KNN,
    "mf": MatrixFactorisation,
    "gaussian": Gaussian,
}


def make(name: str, options: dict[str, dict] | None = None) -> Completer:
    """The method of this name with the options given for it.

    Raises
    ------
    ValueError
        If there is no such method, with those there are.
    """
    if name not in METHODS:
        raise ValueError(f"no completion method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name](**(options or {}).get(name, {}))
