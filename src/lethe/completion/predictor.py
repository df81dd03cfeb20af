"""A completion model in a file: from a few probed losses to the forgetting of everything upstream.

What `ForgettingProbe` loads into somebody else's fine-tune. The file is .npz without pickle.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from lethe.completion import make
from lethe.completion.probes import choose_probes
from lethe.data.examples import Example, read_upstream
from lethe.errors import LetheError
from lethe.files import atomic_write
from lethe.matrix import forgetting_matrix, rows


@dataclass(frozen=True)
class Prediction:
    """Forgetting in nats of the N upstream examples, and the ends of its interval."""

    forgetting: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def by_domain(self, domains: np.ndarray) -> dict[str, float]:
        """Domain -> mean predicted forgetting of its examples in nats, most first."""
        names = np.unique(domains)
        means = {str(name): float(self.forgetting[domains == name].mean()) for name in names}
        return dict(sorted(means.items(), key=lambda pair: -pair[1]))


@dataclass
class Predictor:
    """A method fitted on the rows of tasks already measured, with the probes it asks for.

    `train` (M, N) in nats; `domains` (N,); `probes` are the k upstream examples, at columns
    `index` (k,), that a new fine-tune has to be scored on, with `max_tokens` and `include_eos`
    as the rows were.
    """

    train: np.ndarray
    example_ids: list[str]
    domains: np.ndarray
    index: np.ndarray
    probes: list[Example]
    max_tokens: int
    include_eos: bool = False
    method: str = "gaussian"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self._fitted = make(self.method, {self.method: self.options}).fit(self.train)

    @classmethod
    def from_results(
        cls, folder: Path | str, probes: int = 30, method: str = "gaussian", seed: int = 0
    ) -> Self:
        """Fits on a model's folder of a finished experiment, such as results/default/olmo-0.7m.

        Probes are chosen A-optimally among all upstream examples without a missing value; those
        that no task has a value of are left out.

        Raises
        ------
        LetheError
            If Z or the upstream examples are not there, or belong to different experiments, or
            Z holds right answers that were lost: probes are scored by their loss.
        """
        folder = Path(folder)
        z, base = forgetting_matrix.read(folder / "Z.parquet"), rows.read(folder / "base.parquet")
        upstream = {e.example_id: e for e in read_upstream(folder.parent / "upstream.parquet")}
        if lacking := [name for name in z.example_ids if name not in upstream]:
            raise LetheError(
                f"{folder}: {len(lacking)} examples of Z, such as {lacking[0]!r}, are not in "
                f"{folder.parent / 'upstream.parquet'}; they are of different runs"
            )
        scoring = base.settings["scoring"]
        if scoring.get("exact_match") is not None:
            raise LetheError(
                f"{folder}: its Z holds which right answers were lost (scoring.exact_match); a "
                "prediction while training needs an experiment that measures losses"
            )
        seen = np.isfinite(z.values).any(axis=0)
        values = z.values[:, seen].astype(np.float32)
        known = np.isfinite(values).all(axis=0)
        index = choose_probes(values, probes, "a_optimal", seed=seed, allowed=known)
        ids = [name for name, kept in zip(z.example_ids, seen, strict=True) if kept]
        chosen = [upstream[name] for name in ids]
        return cls(
            values,
            ids,
            np.array([example.domain for example in chosen]),
            index,
            [chosen[i].example for i in index],
            scoring["max_tokens"],
            scoring["include_eos"],
            method,
        )

    def predict(self, values: np.ndarray, level: float = 0.9) -> Prediction:
        """From the forgetting (k,) of the probes to that of everything, with an interval."""
        forgetting = self._fitted.predict(self.index, values)
        if not self._fitted.has_intervals:
            return Prediction(forgetting, forgetting * np.nan, forgetting * np.nan)
        return Prediction(forgetting, *self._fitted.predict_interval(self.index, values, level))

    def save(self, path: Path | str) -> None:
        """Writes one .npz file, whole or not at all."""
        told = {
            **{"method": self.method, "options": self.options, "max_tokens": self.max_tokens},
            **{"include_eos": self.include_eos, "probes": [asdict(e) for e in self.probes]},
        }
        arrays = {
            **{"train": self.train, "index": self.index, "domains": np.asarray(self.domains)},
            **{"example_ids": np.array(self.example_ids), "told": np.array(json.dumps(told))},
        }
        with atomic_write(path) as part, part.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads what `save` wrote; never unpickles.

        Raises
        ------
        LetheError
            If the file is none of these.
        """
        try:
            with np.load(path, allow_pickle=False) as found:
                told = json.loads(str(found["told"]))
                probes = [Example(**example) for example in told.pop("probes")]
                ids = found["example_ids"].tolist()
                arrays = {"train": found["train"], "index": found["index"]}
                return cls(
                    **arrays, domains=found["domains"], example_ids=ids, probes=probes, **told
                )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LetheError(
                f"{path}: not a saved completion model ({error}); make one by "
                "Predictor.from_results(...).save(path)"
            )
