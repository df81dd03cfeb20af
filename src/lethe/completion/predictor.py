"""A completion model in a file: from a few probed losses to the forgetting of everything upstream.

What `ForgettingProbe` loads into somebody else's fine-tune. The file is .npz without pickle.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from lethe.completion import make
from lethe.completion.probes import choose_probes
from lethe.data.examples import Example, read_upstream
from lethe.errors import LetheError
from lethe.files import atomic_write, read_json
from lethe.matrix import forgetting_matrix, rows

# Arrays that files of earlier versions lack.
MEASURED = ("base_losses", "scored_tokens")


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
    `index` (k,), that a new fine-tune has to be scored on.

    The other fields describe how the rows were measured, so that probes are read in the same way
    and on the same model: `max_tokens`, `include_eos`, `truncation` (the side on which pairs are
    cut), `chat_template` (its text; empty: none; None: unknown) and `dtype` (scoring.dtype).
    `base_losses` (k,) in nats and `scored_tokens` (k,) of the probes under the base model are
    compared with those of the model that is fine-tuned; None if unknown.
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
    truncation: str = "right"
    chat_template: str | None = None
    dtype: str = "float32"
    base_losses: np.ndarray | None = None
    scored_tokens: np.ndarray | None = None

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
        measured = base.select([ids[i] for i in index])
        return cls(
            train=values,
            example_ids=ids,
            domains=np.array([example.domain for example in chosen]),
            index=index,
            probes=[chosen[i].example for i in index],
            max_tokens=scoring["max_tokens"],
            include_eos=scoring["include_eos"],
            method=method,
            chat_template=template_of_card(base.settings.get("model", {}), folder),
            dtype=scoring.get("dtype", "float32"),
            base_losses=measured.loss_before.astype(np.float64),
            scored_tokens=measured.n_tokens.astype(np.int64),
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
            **{"truncation": self.truncation, "chat_template": self.chat_template},
            "dtype": self.dtype,
        }
        arrays = {
            **{"train": self.train, "index": self.index, "domains": np.asarray(self.domains)},
            **{"example_ids": np.array(self.example_ids), "told": np.array(json.dumps(told))},
        }
        for name in MEASURED:
            values = getattr(self, name)
            if values is not None:
                arrays[name] = np.asarray(values)
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
                for name in MEASURED:
                    arrays[name] = found[name] if name in found.files else None
                return cls(
                    **arrays, domains=found["domains"], example_ids=ids, probes=probes, **told
                )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LetheError(
                f"{path}: not a saved completion model ({error}); make one by "
                "Predictor.from_results(...).save(path)"
            )


def template_of_card(card: Mapping[str, Any], folder: Path) -> str | None:
    """Finds the chat template that a model's rows were measured with.

    Parameters
    ----------
    card
        The model's card, as stored in its base row. A template in it replaces the model's own.
    folder
        The model's folder of results, from which a relative path in the card is looked up.

    Returns
    -------
    The text of the template, empty if there is none, or None if the model's own files are not on
    this machine.
    """
    if "chat_template" in card:
        return card["chat_template"] or ""
    if "path" not in card:
        return None
    for root in (Path(), *folder.resolve().parents):
        model = root / card["path"]
        if (model / "tokenizer_config.json").is_file():
            return _own_template(model)
    return None


def _own_template(model: Path) -> str | None:
    """The template that transformers would load from a model's folder."""
    if (model / "chat_template.jinja").is_file():
        return (model / "chat_template.jinja").read_text("utf-8")
    template = read_json(model / "tokenizer_config.json").get("chat_template") or ""
    # Several named templates: transformers takes the one for the conversation at hand.
    return template if isinstance(template, str) else None
