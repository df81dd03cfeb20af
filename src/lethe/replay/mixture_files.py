"""Training data with replayed examples in it, as files of rows that every trainer reads.

Rows are written, not weights, because all trainers take rows. Examples that are held out never
leave the pool.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lethe.completion.predictor import SAME_WEIGHTS, Prediction, Predictor
from lethe.data.conversations import readable_turn
from lethe.data.examples import (
    Example,
    UpstreamExample,
    count_heldout,
    upstream_digest,
    without_copies_of_heldout,
    write_upstream,
)
from lethe.data.training_rows import FORMS, Form, NewData, as_line, replay_row_of, row_of
from lethe.data.words import count_words
from lethe.engine.mixture import mix
from lethe.errors import LetheError
from lethe.files import write_text
from lethe.matrix.rows import Row
from lethe.replay.draws import count_replayed, draw_balanced, draw_softmax

# Temperature of the draw by forgetting, in nats: the workflow's default.
TEMPERATURE = 0.1
# Replayed examples per new example, at most.
MOST_RATIO = 100
# Folder of the copies without ids, domains and forgetting.
PLAIN = "plain"
NEW = "new.jsonl"
TRAIN = "train_with_replay.jsonl"
CHATS = f"{PLAIN}/replay.chats.jsonl"
PASSAGES = f"{PLAIN}/replay.passages.jsonl"


@dataclass(frozen=True)
class ReplayedExample:
    """An example of the pool that is replayed, and its forgetting in nats (None: unknown)."""

    upstream: UpstreamExample
    forgetting: float | None

    def labels(self, measure: str) -> dict[str, Any]:
        """Id, domain and forgetting, as extra columns of a row."""
        labels = {"example_id": self.upstream.example_id, "domain": self.upstream.domain}
        return labels if self.forgetting is None else labels | {measure: self.forgetting}


@dataclass(frozen=True)
class Mixture:
    """New examples and replayed ones.

    Attributes
    ----------
    form
        Form of the rows, which is that of the new data.
    measure
        Name of the column of forgetting: `measured_forgetting` or `predicted_forgetting`.
    left_out
        Examples of the pool that could not be replayed, by reason.
    new_heldout
        Number of new examples that are held-out examples of the pool. They are trained on, so a
        verdict on them is worth nothing.
    """

    new: list[Example]
    replayed: list[ReplayedExample]
    form: Form
    measure: str
    left_out: dict[str, int]
    new_heldout: int = 0

    @property
    def different_examples(self) -> int:
        """Number of different examples among the replayed ones; each may be replayed repeatedly."""
        return len({item.upstream.example_id for item in self.replayed})

    def remarks(self, chats: Path | str, pool: Path | str) -> list[str]:
        """Sentences on examples that were left out, are held out or repeat, naming their file."""
        sentences = [
            f"{pool}: {count} {reason}, not replayed" for reason, count in self.left_out.items()
        ]
        if self.new_heldout:
            sentences.append(
                f"{chats}: {self.new_heldout} of the new chats are held-out examples of {pool}; a "
                "verdict on these is worth nothing, so take them out of one of the two"
            )
        if self.different_examples < len(self.replayed):
            sentences.append(
                f"{pool}: the {len(self.replayed)} replayed rows hold {self.different_examples} "
                "different examples, so some are repeated; a lower ratio or a larger pool avoids "
                "this"
            )
        return sentences

    @property
    def has_tools(self) -> bool:
        """Whether a conversation in it has tools or calls of them."""
        replayed = [item.upstream.example for item in self.replayed]
        for example in [*self.new, *replayed]:
            if example.chat is not None:
                turns, tools = example.conversation()
                if tools or any("tool_calls" in turn for turn in turns):
                    return True
        return False


def measured_forgetting(
    row: Row, upstream: Sequence[UpstreamExample], path: Path
) -> dict[str, float]:
    """Forgetting in nats by example id, from a file of `lethe compare`.

    Raises
    ------
    LetheError
        If the row was measured on another pool.
    """
    _check_pool(row, upstream, path)
    if np.array_equal(row.loss_before, row.loss_after, equal_nan=True):
        raise LetheError(
            f"{path}: holds the losses of one model, not what another has forgotten; compare two "
            "such files with lethe compare first"
        )
    return dict(zip(row.example_ids, row.forgetting.astype(float).tolist(), strict=True))


def by_example(predictor: Predictor, prediction: Prediction) -> dict[str, float]:
    """Predicted forgetting in nats by example id."""
    values = np.asarray(prediction.forgetting, float).tolist()
    return dict(zip(predictor.example_ids, values, strict=True))


def predict_from_row(
    predictor: Predictor,
    probes: Row,
    upstream: Sequence[UpstreamExample],
    path: Path,
    sibling: Row | None = None,
) -> Prediction:
    """Predicts forgetting from the probes' losses after the fine-tune.

    Parameters
    ----------
    probes
        Losses of the fine-tuned model on the pool or on the probes (`lethe score`), or what it has
        forgotten (`lethe compare`).
    path
        File of the probes, for messages.
    sibling
        The new task's row on the other model whose rows the predictor holds.

    Raises
    ------
    LetheError
        If the predictor belongs to another pool or holds no rows of a sibling, if a file lacks
        examples, if a probe has no loss, or if the losses are those of the base model itself or of
        a fine-tune of another model.
    """
    by_id = {example.example_id: example.example for example in upstream}
    names = [predictor.example_ids[int(number)] for number in predictor.index]
    for name, probe in zip(names, predictor.probes, strict=True):
        if by_id.get(name) != probe:
            raise LetheError(
                f"the predictor's probe {name!r} is not that of the pool, so it was made on "
                "another pool; give the pool that it was made on"
            )
    row = probes.select(names, path)
    _check_scored_tokens(predictor, row, path)
    values = row.forgetting.astype(float)
    holds_one_model = np.array_equal(row.loss_before, row.loss_after, equal_nan=True)
    if holds_one_model:
        if predictor.base_losses is None:
            raise LetheError(
                f"{path}: holds losses, and the predictor lacks those of the base model; give a "
                "file of lethe compare as --probes"
            )
        values = row.loss_after.astype(float) - predictor.base_losses
    if not np.isfinite(values).all():
        broken = names[int(np.argmin(np.isfinite(values)))]
        raise LetheError(f"{path}: the probe {broken!r} has no loss; score the probes again")
    if not holds_one_model:
        scoring = row.settings.get("scoring", {})
        predictor.check_base(
            row.loss_before.astype(float),
            path,
            single_precision=scoring.get("dtype") == "float32" and "quantize" not in row.settings,
        )
    if (np.abs(values) < SAME_WEIGHTS).all():
        raise LetheError(
            f"{path}: these are the losses of the base model itself (none of the {len(values)} "
            f"probes differs by {SAME_WEIGHTS:g} nats); give the losses after a fine-tune as "
            "--probes"
        )
    other = None
    if sibling is not None:
        other = sibling.select(predictor.example_ids, "the sibling's row").forgetting.astype(float)
    return predictor.predict(values, other=other)


def _check_scored_tokens(predictor: Predictor, row: Row, path: Path) -> None:
    """Refuses probes with other numbers of scored tokens than in the predictor's experiment."""
    different = predictor.probes_of_other_length(row.n_tokens)
    if len(different):
        first = different[0]
        raise LetheError(
            f"{path}: {len(different)} of {len(row.n_tokens)} probes have another number of scored "
            f"tokens than in the predictor's experiment ({row.example_ids[first]!r}: "
            f"{row.n_tokens[first]}, there {predictor.scored_tokens[first]}); score them again "
            f"with --max-tokens {predictor.max_tokens} and the experiment's model and template"
        )


def _check_pool(row: Row, upstream: Sequence[UpstreamExample], path: Path) -> None:
    expected = row.settings.get("upstream")
    if expected is not None and expected != upstream_digest(upstream):
        raise LetheError(
            f"{path}: was measured on another pool than this one; give the pool that it was "
            "measured on"
        )


def make_mixture(
    new: NewData,
    upstream: Sequence[UpstreamExample],
    *,
    ratio: float,
    seed: int,
    forgetting: dict[str, float] | None = None,
    measure: str = "measured_forgetting",
) -> Mixture:
    """Draws the replayed examples.

    With `forgetting`, examples that are forgotten more are drawn more often, by the softmax of
    forgetting / TEMPERATURE. Without it the draw is random, with the same number per domain.

    Parameters
    ----------
    ratio
        Replayed examples per new example; above 0 and at most 100.
    forgetting
        Nats by example id. Examples without a finite value are not drawn.

    Raises
    ------
    LetheError
        If the ratio is impossible, or no example of the pool can be replayed.
    """
    # NaN is refused, too.
    if not 0 < ratio <= MOST_RATIO:
        raise LetheError(
            f"ratio is {ratio}; give a number of replayed examples per new example that is above "
            f"0 and at most {MOST_RATIO}"
        )
    left_out: Counter[str] = Counter()
    candidates = []
    usable = without_copies_of_heldout(upstream)
    if len(usable) < len(upstream):
        left_out["copies of held-out examples"] = len(upstream) - len(usable)
    for example in usable:
        if example.split != "replayable":
            left_out["held out"] += 1
        elif replay_row_of(example.example, new.form) is None:
            left_out[f"conversations, which rows of {new.form} cannot hold"] += 1
        elif forgetting is not None and not np.isfinite(_value(forgetting, example)):
            left_out["without a value of forgetting"] += 1
        else:
            candidates.append(example)
    if not candidates:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise LetheError(f"no example of the pool can be replayed ({reasons})")
    count = count_replayed(len(new.examples), ratio)
    if forgetting is None:
        domains = np.array([example.domain for example in candidates])
        indices = draw_balanced(domains, count, seed)
        values: list[float | None] = [None] * len(candidates)
    else:
        scores = np.array([_value(forgetting, example) for example in candidates])
        indices = draw_softmax(scores / TEMPERATURE, count, seed)
        values = scores.tolist()
    replayed = [ReplayedExample(candidates[i], values[i]) for i in indices]
    return Mixture(
        new=new.examples,
        replayed=replayed,
        form=new.form,
        measure=measure,
        left_out=dict(left_out),
        new_heldout=count_heldout(new.examples, upstream),
    )


def _value(forgetting: dict[str, float], example: UpstreamExample) -> float:
    return forgetting.get(example.example_id, float("nan"))


@dataclass(frozen=True)
class MixtureDose:
    """How much of the loss comes from replayed examples.

    Attributes
    ----------
    unit
        `tokens`, or `words` if no tokenizer was at hand.
    new, replayed
        Tokens or words that carry loss.
    """

    unit: str
    new: int
    replayed: int

    @property
    def share(self) -> float:
        """Replayed over new: trainers average the loss over all tokens of a batch."""
        return self.replayed / self.new if self.new else float("nan")


def dose_of(
    mixture: Mixture,
    count: Callable[[Example], int],
    unit: str,
    *,
    plain_passages: bool = False,
) -> MixtureDose:
    """The dose of a mixture.

    Parameters
    ----------
    count
        Tokens (or words) of an example, as it stands in the rows, that carry loss.
    plain_passages
        Whether the trainer learns all of a plain text among chats, as axolotl does, which reads
        `plain/replay.passages.jsonl`. Otherwise its beginning is a question without loss.
    """
    new = sum(count(example) for example in mixture.new)
    replayed = 0
    for item in mixture.replayed:
        example = item.upstream.example
        if not (plain_passages and example.text is not None):
            example = _as_row(example, mixture.form)
        replayed += count(example)
    return MixtureDose(unit=unit, new=new, replayed=replayed)


def _as_row(example: Example, form: Form) -> Example:
    """The example that a trainer reads from a row.

    Plain text among chats is a question with its answer. A question among plain texts is plain
    text, so that it carries loss like its answer.
    """
    if form == "messages" and example.text is not None:
        question, answer = row_of(example, form)["messages"]
        return Example(question["content"], answer["content"])
    if form == "text" and example.text is None:
        return Example(text=row_of(example, form)["text"])
    return example


def loss_words(example: Example) -> int:
    """Words of an example that carry loss: of its answers and calls of tools, or of plain text."""
    if example.text is not None:
        return count_words(example.text)
    turns, _ = example.conversation()
    answers = []
    for turn in turns:
        if turn["role"] == "assistant" and (turn["content"] or turn.get("tool_calls")):
            answers.append(readable_turn(turn))
    return count_words(" ".join(answers))


def write_mixture(folder: Path, mixture: Mixture) -> dict[str, int]:
    """Writes the files of rows into a folder.

    `new.jsonl` holds the new rows and `train_with_replay.jsonl` all rows in the order of the
    mixture. `replay.<form>.jsonl` holds the replayed rows in each form that can hold them, with
    ids, domains and forgetting; `plain/replay.<form>.jsonl` holds them without these. Trainers
    that mix forms read `plain/replay.chats.jsonl` and `plain/replay.passages.jsonl`, which hold
    the replayed chats as messages and the replayed plain texts as text.

    Returns
    -------
    Rows by the name of the file. A file without rows is not written.

    Raises
    ------
    LetheError
        If an example has no row in the form of the mixture.
    """
    new = [row_of(example, mixture.form) for example in mixture.new]
    replayed = [replay_row_of(item.upstream.example, mixture.form) for item in mixture.replayed]
    if None in new or None in replayed:
        raise LetheError(f"rows of {mixture.form} cannot hold some of the examples")
    files = {NEW: new, TRAIN: mix(new, replayed, "add")}
    for form in FORMS:
        labelled = []
        plain = []
        for item in mixture.replayed:
            row = replay_row_of(item.upstream.example, form)
            if row is not None:
                labelled.append(row | item.labels(mixture.measure))
                plain.append(row)
        files[f"replay.{form}.jsonl"] = labelled
        files[f"{PLAIN}/replay.{form}.jsonl"] = plain
    examples = [item.upstream.example for item in mixture.replayed]
    files[CHATS] = [row_of(example, "messages") for example in examples if example.text is None]
    files[PASSAGES] = [row_of(example, "text") for example in examples if example.text is not None]
    counts = {}
    for name, rows in files.items():
        if rows:
            write_text(folder / name, "".join(as_line(row) for row in rows))
            counts[name] = len(rows)
    return counts


def write_replayed(path: Path, mixture: Mixture) -> None:
    """Writes the replayed examples, each once, as a table like that of the pool.

    `lethe.integrations.Rehearsal` reads it.
    """
    by_id = {item.upstream.example_id: item.upstream for item in mixture.replayed}
    write_upstream(path, list(by_id.values()))
