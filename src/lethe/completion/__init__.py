"""Which examples will an unseen task make the model forget? One method per file, one interface.

Every method is fitted on measured rows of Z and predicts a task's complete row from a few probed
examples. This wing may import `config`, `data` and `matrix`. It never imports torch.
"""

from collections.abc import Mapping

from lethe.completion.additive import Additive, Affine
from lethe.completion.baselines import ColumnMean, Constant, Random
from lethe.completion.completer import Completer
from lethe.completion.gaussian import Gaussian
from lethe.completion.knn import KNN
from lethe.completion.local import LocalGaussian
from lethe.completion.logistic import LogisticFactorAnalysis, LogisticMF
from lethe.completion.logistic_stack import LogisticStack
from lethe.completion.matrix_factorisation import MatrixFactorisation
from lethe.completion.soft_impute import SoftImpute


class _Methods(dict[str, type[Completer]]):
    """Completion methods by the name that experiments use."""

    def __missing__(self, name: str) -> type[Completer]:
        raise KeyError(f"no completion method {name!r}; known: {', '.join(self)}")


METHODS: dict[str, type[Completer]] = _Methods(
    {
        "random": Random,
        "constant": Constant,
        "column_mean": ColumnMean,
        "additive": Additive,
        "affine": Affine,
        "knn": KNN,
        "mf": MatrixFactorisation,
        "soft_impute": SoftImpute,
        "gaussian": Gaussian,
        "gaussian_local": LocalGaussian,
        "logistic_mf": LogisticMF,
        "logistic_fa": LogisticFactorAnalysis,
        "logistic_stack": LogisticStack,
    }
)
# These predict probabilities and need a Z of 0s and 1s.
BINARY = ("logistic_mf", "logistic_fa", "logistic_stack")


def make(name: str, options: Mapping[str, dict] | None = None) -> Completer:
    """The method of this name, with its entry in `options` as keyword arguments.

    Raises
    ------
    ValueError
        If there is no such method; the message lists all.
    """
    if name not in METHODS:
        raise ValueError(f"no completion method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name](**(options or {}).get(name, {}))
