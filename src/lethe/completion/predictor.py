"""A completion model in a file: from a few probed losses to the forgetting of everything upstream.

`ForgettingProbe` loads it into any fine-tune. The file is .npz without pickle.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from lethe.completion import make
from lethe.completion.domain_means import MeanPredictor, domain_masks
from lethe.completion.gaussian import Gaussian
from lethe.completion.probes import choose_probes
from lethe.completion.ranking import RankingCheck, check_ranking, expected_top_tenth
from lethe.completion.sibling import read_sibling_rows
from lethe.data.examples import Example, read_upstream
from lethe.data.unpacked_size import refuse_large_archive
from lethe.errors import LetheError, one_line
from lethe.files import atomic_write, read_json
from lethe.matrix import forgetting_matrix, rows

# Names of the settings in a saved file, now and in files of lethe before 0.2.
SETTINGS_KEYS = ("settings", "told")
# Largest difference in nats between a probe's base loss and that of the experiment. Equal weights
# in float32 agree to rounding; in other precisions, or in different ones, a loss may differ more.
SAME_BASE = 0.005
SAME_BASE_LOW_PRECISION = 0.15
# Losses in nats that differ by no more are those of the same weights.
SAME_WEIGHTS = 1e-5
# Arrays that may be absent, as in files of earlier versions.
OPTIONAL_ARRAYS = ("base_losses", "scored_tokens", "other")


@dataclass(frozen=True)
class MeanForgetting:
    """Mean forgetting in nats over some examples, and the ends of its interval.

    The ends are NaN if the method gives no intervals of means, if there are fewer than three
    training tasks, or if these are predicted from one another without an error.
    """

    value: float
    low: float
    high: float

    def text(self) -> str:
        """The mean and its interval in words."""
        if not np.isfinite([self.low, self.high]).all():
            return f"{self.value:+.3f} nats (no interval)"
        return f"{self.value:+.3f} nats [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True)
class Prediction:
    """Predicted forgetting in nats: the mean, the mean of every domain, and single examples.

    `mean` is that over all examples, and `domains` those of the domains from most to least. Probed
    examples count in them with their measured values. `forgetting` (N,) is that of the examples,
    with the ends of its interval (N,). All intervals contain the value with probability `level`.
    """

    level: float
    mean: MeanForgetting
    domains: dict[str, MeanForgetting]
    forgetting: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def summary(self, top_tenth: float | None = None) -> str:
        """The means in words, one line per domain.

        Parameters
        ----------
        top_tenth
            Share of the most forgotten tenth that is expected to be in the predicted tenth
            (`Predictor.top_tenth`). It is written at the end unless it is None or NaN.
        """
        percent = f"{100 * self.level:.0f} %"
        lines = [f"Predicted mean forgetting, with {percent} intervals: {self.mean.text()}"]
        lines += [f"  {name}: {mean.text()}" for name, mean in self.domains.items()]
        if top_tenth is not None and np.isfinite(top_tenth):
            lines.append(
                f"The predicted tenth is expected to hold {100 * top_tenth:.0f} % of the tenth "
                "that is most forgotten (10 % by chance)."
            )
        return "\n".join(lines)

    def by_domain(self, domains: np.ndarray) -> dict[str, float]:
        """Mean predicted forgetting in nats per domain, from most to least."""
        means = {}
        for name in np.unique(domains):
            means[str(name)] = float(self.forgetting[domains == name].mean())
        return dict(sorted(means.items(), key=lambda pair: -pair[1]))


@dataclass
class Predictor:
    """A method fitted on the rows of tasks already measured, with the probes that it needs.

    `train` (M, N) is in nats. `domains` (N,) belong to the N examples. `probes` are the k
    upstream examples, at columns `index` (k,), that a new fine-tune has to be scored on.

    The other fields describe how the rows were measured, so that probes are read in the same way
    and on the same model: `max_tokens`, `include_eos`, `truncation` (the side on which pairs are
    cut), `chat_template` (its text; empty: none; None: unknown) and `dtype` (scoring.dtype).
    `base_losses` (k,) in nats and `scored_tokens` (k,) of the probes under the base model are
    compared with those of the model that is fine-tuned; they are None if unknown.

    `other` (M, N) are rows of the same tasks on another model, in nats (`Gaussian.fit`), or None.
    Then `predict` also takes the new task's row on that model. `other_model` names it.
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
    other: np.ndarray | None = None
    other_model: str | None = None

    def __post_init__(self):
        completer = make(self.method, {self.method: self.options})
        if self.other is None:
            self._fitted = completer.fit(self.train)
        elif isinstance(completer, Gaussian):
            self._fitted = completer.fit(self.train, other=self.other)
        else:
            raise LetheError(
                f"the method {self.method!r} takes no rows of another model; use gaussian, or "
                "leave out the other model"
            )
        self._domain_names, of_domains = domain_masks(self.domains)
        everything = np.ones((1, self.train.shape[1]), dtype=bool)
        self._members = np.vstack([everything, of_domains])
        self._means: MeanPredictor | None = None
        if isinstance(self._fitted, Gaussian) and self._fitted.has_intervals:
            self._means = MeanPredictor(self._fitted, self._members)

    def __repr__(self) -> str:
        tasks, examples = self.train.shape
        return (
            f"Predictor(method={self.method!r}, options={self.options!r}, {tasks} tasks x "
            f"{examples} examples, {len(self.probes)} probes)"
        )

    @classmethod
    def from_results(
        cls,
        folder: Path | str,
        probes: int | None = 30,
        method: str = "gaussian",
        seed: int = 0,
        *,
        sibling: Path | str | None = None,
        token_budget: int | None = None,
    ) -> Self:
        """Fits on a model's folder of a finished experiment, such as results/default/olmo-0.7m.

        Probes are chosen A-optimally among all upstream examples without a missing value.
        Examples without any value are left out.

        Parameters
        ----------
        probes
            Number of probes, with `token_budget` the largest number; None for no limit.
        token_budget
            Largest sum of the probes' scored tokens. Then probes are chosen by the information
            that they give per token.
        sibling
            Folder of another model that learned the same tasks and was scored on the same
            examples, such as results/default/pythia-0.6m. It may lack some of the tasks.

        Raises
        ------
        LetheError
            If Z or the upstream examples do not exist, or belong to different experiments, or
            Z holds right answers that were lost, because probes are scored by their loss. If the
            sibling was scored on other examples or shares no task.
        """
        folder = Path(folder)
        z = forgetting_matrix.read_matrix(folder / "Z.parquet")
        other = None
        if sibling is not None:
            other = read_sibling_rows(Path(sibling) / "Z.parquet", z)
        base = rows.read_row(folder / "base.parquet")
        upstream_path = folder.parent / "upstream.parquet"
        upstream = {example.example_id: example for example in read_upstream(upstream_path)}
        missing = [example_id for example_id in z.example_ids if example_id not in upstream]
        if missing:
            raise LetheError(
                f"{folder}: {len(missing)} examples of Z, such as {missing[0]!r}, are not in "
                f"{upstream_path}; the two files are from different runs"
            )
        scoring = base.settings["scoring"]
        if scoring.get("exact_match") is not None:
            raise LetheError(
                f"{folder}: its Z holds which right answers were lost (scoring.exact_match); a "
                "prediction during training needs an experiment that measures losses"
            )
        measured = np.isfinite(z.values).any(axis=0)
        train = z.values[:, measured].astype(np.float32)
        complete = np.isfinite(train).all(axis=0)
        if other is not None:
            other = other[:, measured]
        # Probes that are best for the difference from another model are no better (docs/lab).
        examples = []
        for example_id, is_measured in zip(z.example_ids, measured, strict=True):
            if is_measured:
                examples.append(upstream[example_id])
        cost = None
        if token_budget is not None:
            cost = base.select([example.example_id for example in examples]).n_tokens
        index = choose_probes(
            train,
            probes,
            "a_optimal",
            seed=seed,
            allowed=complete,
            cost=cost,
            budget=token_budget,
        )
        measured_probes = base.select([examples[i].example_id for i in index])
        return cls(
            train=train,
            example_ids=[example.example_id for example in examples],
            domains=np.array([example.domain for example in examples]),
            index=index,
            probes=[examples[i].example for i in index],
            max_tokens=scoring["max_tokens"],
            include_eos=scoring["include_eos"],
            method=method,
            chat_template=template_of_card(base.settings.get("model", {}), folder),
            dtype=scoring.get("dtype", "float32"),
            base_losses=measured_probes.loss_before.astype(np.float64),
            scored_tokens=measured_probes.n_tokens.astype(np.int64),
            other=other,
            other_model=Path(sibling).name if sibling is not None else None,
        )

    def predict(
        self, values: np.ndarray, level: float = 0.9, other: np.ndarray | None = None
    ) -> Prediction:
        """Predicts the forgetting of all examples, and its means, from that (k,) of the probes.

        The intervals contain the value with probability `level`. Their ends are NaN if the method
        has no intervals.

        Parameters
        ----------
        other
            The new task's row (N,) in nats on the other model whose rows the predictor holds. It
            may have NaN cells. Without it the prediction is that without the other model.

        Raises
        ------
        LetheError
            If a row is passed but the predictor holds no rows of another model.
        """
        with_other = {}
        if other is not None:
            if self.other is None:
                raise LetheError(
                    "a row of another model was passed, but this predictor holds no rows of one; "
                    "make it by Predictor.from_results(..., sibling=folder)"
                )
            with_other["other"] = other
        forgetting = self._fitted.predict(self.index, values, **with_other)
        low = high = np.full_like(forgetting, np.nan)
        if self._fitted.has_intervals:
            low, high = self._fitted.predict_interval(self.index, values, level, **with_other)
        mean, *of_domains = self._mean_forgetting(forgetting, values, level, with_other)
        by_domain = dict(zip(self._domain_names, of_domains, strict=True))
        return Prediction(
            level=level,
            mean=mean,
            domains=dict(sorted(by_domain.items(), key=lambda pair: -pair[1].value)),
            forgetting=forgetting,
            low=low,
            high=high,
        )

    def _mean_forgetting(
        self,
        forgetting: np.ndarray,
        values: np.ndarray,
        level: float,
        with_other: Mapping[str, np.ndarray],
    ) -> list[MeanForgetting]:
        """The mean over all examples, and that over each domain."""
        if self._means is None:
            # The probed examples count with their measured values, as they do with intervals.
            measured = np.where(np.isfinite(values), values, forgetting[self.index])
            completed = forgetting.copy()
            completed[self.index] = measured
            means = [completed[members].mean() for members in self._members]
            return [MeanForgetting(value=float(m), low=np.nan, high=np.nan) for m in means]
        predicted = self._means.predict(self.index, values, levels=[level], **with_other)
        ends = zip(predicted.values[0], predicted.low[0, 0], predicted.high[0, 0], strict=True)
        return [MeanForgetting(float(value), float(low), float(high)) for value, low, high in ends]

    @cached_property
    def top_tenth(self) -> float:
        """Share of the tenth of examples forgotten most that the predicted tenth should hold.

        Every training task is predicted from the others and its own values at the probes. The
        share is the mean over tasks, over the examples that are not probed; chance gives .1. NaN
        if there are fewer than three tasks. The rows of another model are not used, and the
        probes were chosen on all tasks, which flatters the share a little.
        """
        return expected_top_tenth(
            self.train.astype(np.float64), self.index, method=self.method, options=self.options
        )

    def probes_of_other_length(self, scored_tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Numbers of the probes that have more or fewer scored tokens (k,) than in the experiment.

        Empty if the predictor does not record them.
        """
        expected = self.scored_tokens if self.scored_tokens is not None else scored_tokens
        return np.flatnonzero(np.asarray(scored_tokens) != expected)

    def check_base(self, losses: np.ndarray, source: Path | str, *, single_precision: bool) -> None:
        """Refuses losses (k,) in nats of the probes that are not those of the base model.

        Does nothing if the predictor does not record them.

        Parameters
        ----------
        source
            Where the losses come from, for the message.
        single_precision
            Whether they were measured in float32. If the experiment was too, they agree closely.

        Raises
        ------
        LetheError
            Naming the probe that differs most, with both losses.
        """
        if self.base_losses is None:
            return
        stored = np.asarray(self.base_losses, dtype=np.float64)
        tolerance = SAME_BASE_LOW_PRECISION
        if single_precision and self.dtype == "float32":
            tolerance = SAME_BASE
        differences = np.abs(losses - stored)
        worst = int(np.argmax(differences))
        if differences[worst] > tolerance:
            name = self.example_ids[int(self.index[worst])]
            raise LetheError(
                f"{source}: the losses are not those of the predictor's base model. "
                f"Probe {name!r} has a loss of {losses[worst]:.4f} nats here, but "
                f"{stored[worst]:.4f} nats in the experiment (difference "
                f"{differences[worst]:.4f}, at most {tolerance} expected). Start from the model "
                "that the experiment measured, or make a predictor from an experiment on this model"
            )

    def check_ranking(self) -> RankingCheck:
        """How well each training task is ranked from the others and its own probes.

        Probes are chosen anew without the task. Examples that were not measured on every task, and
        the rows of another model, are left out.

        Raises
        ------
        ValueError
            If there are fewer than three tasks.
        """
        complete = np.isfinite(self.train).all(axis=0)
        return check_ranking(
            self.train[:, complete].astype(np.float64),
            probes=len(self.probes),
            method=self.method,
            options=self.options,
        )

    def save(self, path: Path | str) -> None:
        """Writes one .npz file atomically."""
        settings = {
            "method": self.method,
            "options": self.options,
            "max_tokens": self.max_tokens,
            "include_eos": self.include_eos,
            "probes": [example.as_dict() for example in self.probes],
            "truncation": self.truncation,
            "chat_template": self.chat_template,
            "dtype": self.dtype,
            "other_model": self.other_model,
        }
        arrays = {
            "train": self.train,
            "index": self.index,
            "domains": np.asarray(self.domains),
            "example_ids": np.array(self.example_ids),
            "settings": np.array(json.dumps(settings)),
        }
        for name in OPTIONAL_ARRAYS:
            values = getattr(self, name)
            if values is not None:
                arrays[name] = np.asarray(values)
        with atomic_write(path) as part, part.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads a file that `save` wrote; never unpickles.

        Raises
        ------
        LetheError
            If the file is not a saved predictor, or unpacks to more bytes than it may.
        """
        refuse_large_archive(path)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                key = next((key for key in SETTINGS_KEYS if key in arrays), SETTINGS_KEYS[0])
                settings = json.loads(str(arrays[key]))
                probes = [Example(**example) for example in settings.pop("probes")]
                for name in OPTIONAL_ARRAYS:
                    settings[name] = arrays.get(name)
                return cls(
                    train=arrays["train"],
                    example_ids=arrays["example_ids"].tolist(),
                    domains=arrays["domains"],
                    index=arrays["index"],
                    probes=probes,
                    **settings,
                )
        except Exception as error:
            # A damaged file fails in zip, zlib, numpy, JSON or in the fit.
            raise LetheError(
                f"{path}: not a saved completion model ({one_line(error)}); make one by "
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
