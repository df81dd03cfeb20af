"""Which examples a fine-tuned model has lost, from the losses before and after."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats

from lethe.errors import RowError
from lethe.matrix import rows
from lethe.matrix.model_cards import same_model

# A rise in loss by this many nats makes each token 10 percent less probable.
CLEAR_RISE = 0.1
# Losses in nats that differ by no more are the same measurement.
_SAME_LOSS = 1e-5


@dataclass(frozen=True)
class MeanInterval:
    """Mean of n values, and its 95 percent interval (NaN with fewer than two values)."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: np.ndarray, level: float = 0.95) -> "MeanInterval":
        """Student's interval of the mean of the finite values.

        Resampling would need n weights per draw, which 100,000 examples do not allow. With so many
        examples the mean is close to normal.
        """
        finite = np.asarray(values, dtype=np.float64)
        finite = finite[np.isfinite(finite)]
        n = len(finite)
        if not n:
            return cls(mean=float("nan"), low=float("nan"), high=float("nan"), n=0)
        mean = float(finite.mean())
        if n < 2:
            return cls(mean=mean, low=float("nan"), high=float("nan"), n=n)
        reach = stats.t.ppf((1 + level) / 2, n - 1) * finite.std(ddof=1) / np.sqrt(n)
        return cls(mean=mean, low=mean - float(reach), high=mean + float(reach), n=n)

    def as_text(self) -> str:
        """The mean with its interval, in nats."""
        if not np.isfinite(self.low):
            return f"{self.mean:+.4f}"
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


@dataclass(frozen=True)
class DomainLoss:
    """Forgetting of the examples of one domain, in nats per scored token.

    `drift` is the mean absolute change. `risen` is the share of examples whose loss rose by more
    than CLEAR_RISE.
    """

    domain: str
    forgetting: MeanInterval
    drift: float
    risen: float

    @classmethod
    def of(cls, domain: str, values: np.ndarray) -> "DomainLoss":
        """From the forgetting (n,) of the domain's examples; NaN is left out."""
        finite = values[np.isfinite(values)].astype(np.float64)
        nothing = not len(finite)
        return cls(
            domain=domain,
            forgetting=MeanInterval.of(finite),
            drift=float("nan") if nothing else float(np.abs(finite).mean()),
            risen=float("nan") if nothing else float((finite > CLEAR_RISE).mean()),
        )


@dataclass(frozen=True)
class Comparison:
    """What one fine-tuned model has lost.

    Attributes
    ----------
    name
        Name of the file of its losses.
    row
        Losses before and after, in the order of the base file.
    overall
        All examples that count: the held-out ones where the splits are known, else all.
    total
        The number of these examples, those without a loss included.
    domains
        The same examples by domain, the largest forgetting first. A domain without a measured
        example is last.
    splits
        All examples by split, where the splits are known.
    against_first
        Paired difference of forgetting to the first fine-tuned model; None for itself.
    notes
        Sentences on differences of the two measurements that may matter, and on examples without
        a loss, by domain.
    """

    name: str
    row: rows.Row
    overall: DomainLoss
    total: int
    domains: list[DomainLoss]
    splits: list[DomainLoss]
    against_first: MeanInterval | None
    notes: list[str]

    def verdict(self) -> str:
        """One sentence; it claims a change only if the interval excludes 0."""
        forgetting = self.overall.forgetting
        kind = "" if self.overall.domain == "all" else f"{self.overall.domain} "
        examples = f"{forgetting.n} {kind}examples"
        if forgetting.n < self.total:
            examples = f"{forgetting.n} of {self.total} {kind}examples"
        value = f"{forgetting.as_text()} nats per token"
        if not forgetting.n:
            return f"{self.name}: no example was measured both before and after."
        if not np.isfinite(forgetting.low) or forgetting.low <= 0 <= forgetting.high:
            return (
                f"{self.name}: no change of the mean loss that stands out from the spread over "
                f"{examples} ({value})."
            )
        if forgetting.high < 0:
            return (
                f"{self.name}: nothing was forgotten on average; the loss of {examples} fell "
                f"({value})."
            )
        share = 1 - np.exp(-forgetting.mean)
        sentence = (
            f"{self.name}: forgot {value} on {examples}: each token is {share:.1%} less probable "
            "on average"
        )
        if len(self.domains) > 1:
            worst = self.domains[0]
            sentence += f"; most in {worst.domain} ({worst.forgetting.as_text()})"
        return sentence + "."

    def most_forgotten(self, count: int) -> list[int]:
        """Numbers of the examples whose loss rose most, the largest rise first."""
        order = np.argsort(-self.row.forgetting, kind="stable")
        finite = [int(i) for i in order if np.isfinite(self.row.forgetting[i])]
        return finite[:count]


def domain_of(example_id: str) -> str:
    """The domain in an id that lethe gave: everything before the last dash."""
    return example_id.rpartition("-")[0] or "all"


def compare_rows(
    base: rows.Row,
    base_path: Path,
    after: Sequence[tuple[Path, rows.Row]],
    *,
    domains: Mapping[str, str] | None = None,
    splits: Mapping[str, str] | None = None,
) -> list[Comparison]:
    """Compares the losses of fine-tuned models with those of their base model.

    Parameters
    ----------
    base, base_path
        Losses of the untouched base model, and their file.
    after
        File and losses of each fine-tuned model.
    domains, splits
        Domain and split (`heldout` or `replayable`) by example id; None: the domain is read off
        the ids, and the splits are unknown.

    Raises
    ------
    RowError
        Naming the file, if it holds something else, or was measured on another pool, against
        another base model or with other settings.
    """
    _refuse_no_base(base, base_path)
    names = _distinct_names([path for path, _ in after])
    labels = [domain_of(name) if domains is None else domains[name] for name in base.example_ids]
    groups = np.array(labels, dtype=object)
    parts = None
    if splits is not None:
        parts = np.array([splits[name] for name in base.example_ids], dtype=object)
    comparisons: list[Comparison] = []
    for name, (path, row) in zip(names, after, strict=True):
        _refuse_other_measurement(base, base_path, row, path)
        lost = replace(row, loss_before=base.loss_before)
        values = lost.forgetting
        first = comparisons[0].row.forgetting if comparisons else None
        comparisons.append(
            _comparison(
                name,
                lost,
                groups=groups,
                parts=parts,
                against=None if first is None else values - first,
                notes=_notes(base, row, path),
                base_name=base_path.name,
            )
        )
    return comparisons


def _comparison(
    name: str,
    row: rows.Row,
    *,
    groups: np.ndarray,
    parts: np.ndarray | None,
    against: np.ndarray | None,
    notes: list[str],
    base_name: str,
) -> Comparison:
    values = row.forgetting
    counted = np.ones(len(values), dtype=bool)
    label = "all"
    by_split = []
    if parts is not None:
        for split in ("heldout", "replayable"):
            by_split.append(DomainLoss.of(split, values[parts == split]))
        if (parts == "heldout").any():
            # Replayable examples may have been replayed, so they do not show what is forgotten.
            counted = parts == "heldout"
            label = "held-out"
    by_domain = []
    for domain in dict.fromkeys(groups.tolist()):
        by_domain.append(DomainLoss.of(domain, values[counted & (groups == domain)]))
    # A domain without a measured example has the mean NaN.
    by_domain.sort(key=lambda entry: (not entry.forgetting.n, -entry.forgetting.mean))
    unmeasured = _unmeasured_notes(
        name, row, counted=counted, label=label, groups=groups, base_name=base_name
    )
    return Comparison(
        name=name,
        row=row,
        overall=DomainLoss.of(label, values[counted]),
        total=int(counted.sum()),
        domains=by_domain,
        splits=by_split,
        against_first=None if against is None else MeanInterval.of(against[counted]),
        notes=[*notes, *unmeasured],
    )


def _unmeasured_notes(
    name: str,
    row: rows.Row,
    *,
    counted: np.ndarray,
    label: str,
    groups: np.ndarray,
    base_name: str,
) -> list[str]:
    """One sentence for each cause for which examples have no forgetting, with counts by domain."""
    before = np.isfinite(row.loss_before)
    after = np.isfinite(row.loss_after)
    empty = row.n_tokens == 0
    causes = [
        (
            ~before & empty,
            "have no loss",
            "none of their tokens is scored, most often because the answer is cut: raise "
            "--max-tokens of lethe score, for the base model too",
        ),
        (
            ~before & ~empty,
            f"have no finite loss in {base_name}",
            "score the base model again, with --dtype float32",
        ),
        (
            before & ~after,
            "have a loss before the fine-tune and none after it",
            "the fine-tuned model gives NaN on them, so look at its training; if it was scored "
            "with another --dtype than float32, score it again",
        ),
    ]
    total = int(counted.sum())
    kind = "" if label == "all" else f"{label} "
    notes = []
    for affected, fact, advice in causes:
        numbers = np.flatnonzero(affected & counted)
        if not len(numbers):
            continue
        by_domain = Counter(groups[numbers].tolist())
        counts = ", ".join(f"{domain} {count}" for domain, count in by_domain.most_common())
        notes.append(
            f"{name}: {len(numbers)} of {total} {kind}examples {fact} ({counts}) and are not in "
            f"the verdict; {advice}"
        )
    return notes


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """The files' names without their folders, unless two are equal."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _is_one_models(row: rows.Row) -> bool:
    """Whether the losses before and after are the same measurement."""
    return np.array_equal(row.loss_before, row.loss_after, equal_nan=True)


def _refuse_no_base(row: rows.Row, path: Path) -> None:
    if "adapter" in row.settings or "fine_tuned" in row.settings:
        raise RowError(
            f"{path}: holds the losses of a fine-tuned model; give those of the untouched base "
            "model first"
        )
    if row.answers is not None or not _is_one_models(row):
        raise RowError(
            f"{path}: holds what a fine-tune has lost, not the losses of the base model; give the "
            "base file of lethe score (or base.parquet of the workflow) first"
        )


def _refuse_other_measurement(base: rows.Row, base_path: Path, row: rows.Row, path: Path) -> None:
    """Raises RowError if the two files cannot be compared."""
    if row.settings.get("upstream") != base.settings.get("upstream"):
        raise RowError(
            f"{path}: was measured on another pool than {base_path} (other examples, texts or "
            "splits); score both on the same pool"
        )
    for key in ("scoring", "quantize"):
        if row.settings.get(key) != base.settings.get(key):
            raise RowError(
                f"{path}: was measured with other settings than {base_path} ({key} "
                f"{row.settings.get(key)} instead of {base.settings.get(key)}); score it again "
                "with --base"
            )
    if row.example_ids != base.example_ids:
        raise RowError(
            f"{path}: holds {len(row.example_ids)} examples, and {base_path} holds "
            f"{len(base.example_ids)}, or they are in another order; score all of the pool"
        )
    different = np.flatnonzero(row.n_tokens != base.n_tokens)
    if len(different):
        number = int(different[0])
        raise RowError(
            f"{path}: example {row.example_ids[number]!r} has {row.n_tokens[number]} scored "
            f"tokens, but {base.n_tokens[number]} in {base_path} ({len(different)} examples "
            "differ), so the tokenizer or the chat template is another one; score both with the "
            "same"
        )
    same = same_model(row.settings.get("model", {}), base.settings.get("model", {}))
    if _is_one_models(row):
        if "adapter" in row.settings and not same:
            raise RowError(
                f"{path}: its adapter was scored on {_path_of(row)}, but {base_path} holds the "
                f"losses of {_path_of(base)}; score both on the same base model"
            )
        if "adapter" not in row.settings and same:
            raise RowError(
                f"{path}: holds the losses of the same untouched model as {base_path}; give those "
                "of the fine-tuned model, or score its adapter with --adapter"
            )
        return
    gap = np.nanmax(np.abs(row.loss_before - base.loss_before), initial=0.0)
    if not same or gap > _SAME_LOSS:
        raise RowError(
            f"{path}: was measured against another base model ({_path_of(row)}) than that of "
            f"{base_path} ({_path_of(base)}); the losses before the fine-tune differ by up to "
            f"{gap:.4f} nats. Give the base file that it was scored with"
        )


def _path_of(row: rows.Row) -> str:
    return str(row.settings.get("model", {}).get("path", "an unnamed model"))


def _notes(base: rows.Row, row: rows.Row, path: Path) -> list[str]:
    notes = []
    versions = (base.about.get("versions") or {}, row.about.get("versions") or {})
    for key in ("device", "torch", "transformers"):
        before, after = (version.get(key) for version in versions)
        if before != after:
            notes.append(
                f"{path.name}: measured with another {key} than the base ({after} instead of "
                f"{before}); small changes may be rounding"
            )
    return notes
