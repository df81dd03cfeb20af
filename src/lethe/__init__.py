"""lethe: predict, and prevent, what a language model forgets when it is fine-tuned.

This is the face of the library: the names that a notebook needs. They are imported when they are
first used, so that `import lethe` loads neither torch nor scipy.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Name -> the module that defines it.
_FACE = {
    "Additive": "lethe.completion.additive",
    "Affine": "lethe.completion.additive",
    "ColumnMean": "lethe.completion.baselines",
    "Constant": "lethe.completion.baselines",
    "Random": "lethe.completion.baselines",
    "Gaussian": "lethe.completion.gaussian",
    "KNN": "lethe.completion.knn",
    "LogisticFactorAnalysis": "lethe.completion.logistic",
    "LogisticMF": "lethe.completion.logistic",
    "LogisticStack": "lethe.completion.logistic_stack",
    "MatrixFactorisation": "lethe.completion.matrix_factorisation",
    "SoftImpute": "lethe.completion.soft_impute",
    "METHODS": "lethe.completion",
    "evaluate": "lethe.completion.evaluation",
    "choose_probes": "lethe.completion.probes",
    "Predictor": "lethe.completion.predictor",
    "read_matrix": "lethe.matrix.forgetting_matrix",
    "advise": "lethe.replay.advice",
    "rank_curve": "lethe.analysis.low_rank",
    "ForgettingProbe": "lethe.integrations.probe",
    "Rehearsal": "lethe.integrations.rehearsal",
}

__all__ = [*_FACE, "__version__"]


def __getattr__(name: str) -> Any:
    """The object of this name, imported from the wing that defines it."""
    if name not in _FACE:
        raise AttributeError(f"lethe has no {name!r}; it has: {', '.join(sorted(_FACE))}")
    return getattr(importlib.import_module(_FACE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
