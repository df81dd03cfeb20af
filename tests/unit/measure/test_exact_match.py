"""Right answers before and after a fine-tune, through jobs on tiny models that can answer."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import tiny

from lethe.config.model_settings import ExactMatch, Recipe, Scoring
from lethe.config.replay_settings import Replay
from lethe.data.examples import Example, UpstreamExample
from lethe.engine import models
from lethe.engine.generation import generate
from lethe.engine.reader import Reader
from lethe.errors import LetheError, RowError
from lethe.matrix import rows
from lethe.matrix.gathering import gather_row_files, with_identity
from lethe.matrix.row_description import describe_file
from lethe.measure import repeats
from lethe.measure.changed_predictions import measure_changed_predictions
from lethe.measure.exact_match import Questions
from lethe.measure.forgetting import Job, base_losses
from lethe.replay.runs import fine_tune_with_replay

SCORING = Scoring(max_tokens=24, tokens_per_batch=60, exact_match=ExactMatch(max_new_tokens=4))
# The tiny models' own answers, which some of the upstream examples want.
RIGHT = 9


@pytest.fixture(scope="module")
def upstream(model_folders):
    """Fifteen pairs; nine want what the base model says, so that it has those right."""
    model, tokenizer = models.load(model_folders["olmo"])
    texts = tiny.sentences(40, seed=5)
    questions = Questions.of(tokenizer, [Example(text[:20], "?") for text in texts], SCORING)
    said = generate(model, tokenizer, questions.prompts, 4, 1000)
    usable = [(t[:20], a) for t, a in zip(texts, said, strict=True) if a.strip(" .,")][:15]
    assert len(usable) == 15
    pairs = [(t, a if i < RIGHT else f"not {a}") for i, (t, a) in enumerate(usable)]
    return [
        UpstreamExample(
            f"{'ab'[i % 2]}-{i:02d}",
            "ab"[i % 2],
            "heldout" if i % 3 == 2 else "replayable",
            Example(prompt, answer),
        )
        for i, (prompt, answer) in enumerate(pairs)
    ]


@pytest.fixture(scope="module")
def base(model_folders, upstream):
    shared = {"model": model_folders["olmo"], "scoring": SCORING.model_dump()}
    return base_losses(Reader.load(model_folders["olmo"], SCORING), upstream, shared)


@pytest.fixture
def job(model_folders, base):
    recipe = Recipe(steps=4, batch=4, lr=2e-2, warmup_steps=1, max_tokens=32)
    train, evaluation = tiny.pairs(20, seed=1), tiny.pairs(6, seed=2)
    return Job(model_folders["olmo"], base, train, evaluation, recipe, SCORING)


def changed(job, **recipe):
    return replace(job, recipe=job.recipe.model_copy(update=recipe))


def test_the_base_row_holds_what_the_base_model_had_right(base):
    right = [1.0] * RIGHT + [0.0] * (15 - RIGHT)
    np.testing.assert_array_equal(base.answers.exact_match_before, right)
    np.testing.assert_array_equal(base.answers.exact_match_after, right)
    assert np.isfinite(base.loss_before).all()
    assert (base.answers.token_f1_before[RIGHT:] > 0).any(), "'not x' shares its words with x"
    np.testing.assert_array_equal(base.forgetting, [0.0] * RIGHT + [np.nan] * (15 - RIGHT))


def test_a_fine_tune_that_changes_nothing_loses_no_answer(job, upstream):
    *_, row = changed(job, lr=0.0).run(upstream)
    np.testing.assert_array_equal(row.forgetting[:RIGHT], 0)
    assert np.isnan(row.forgetting[RIGHT:]).all()
    assert row.about["eval_exact_match_before"] == row.about["eval_exact_match_after"]


def test_a_fine_tune_loses_answers_and_only_the_right_ones_are_asked_for(job, upstream):
    *_, row = job.run(upstream)
    answers = row.answers
    assert set(row.forgetting[:RIGHT]) <= {0.0, 1.0} and row.forgetting[:RIGHT].sum() > 0
    np.testing.assert_array_equal(row.forgetting[:RIGHT], 1 - answers.exact_match_after[:RIGHT])
    assert answers.text[RIGHT:] == [None] * (15 - RIGHT)
    assert np.isnan(answers.exact_match_after[RIGHT:]).all()
    lost = answers.exact_match_after[:RIGHT] == 0
    assert ((answers.token_f1_after[:RIGHT] >= 0) & (answers.token_f1_after[:RIGHT] <= 1)).all()
    wanted = np.array([example.example.answer for example in upstream[:RIGHT]])
    said = np.array(answers.text[:RIGHT])
    assert (said[lost] != wanted[lost]).all() and (said[~lost] == wanted[~lost]).all()
    assert np.isfinite(row.loss_after).all(), "losses are there as well"


def test_rows_with_answers_are_read_as_they_were_written(job, upstream, tmp_path):
    *_, row = job.run(upstream)
    rows.write_row(tmp_path / "row.parquet", row)
    again = rows.read_row(tmp_path / "row.parquet")
    np.testing.assert_array_equal(again.forgetting, row.forgetting)
    assert again.answers.text == row.answers.text
    np.testing.assert_array_equal(again.answers.token_f1_after, row.answers.token_f1_after)
    z = gather_row_files({"t": tmp_path / "row.parquet"}, "m").matrix
    np.testing.assert_array_equal(z.values[0], row.forgetting)


def test_what_made_a_row_is_told_with_the_answers_that_were_lost(job, upstream, tmp_path):
    *_, row = job.run(upstream)
    rows.write_row(tmp_path / "row.parquet", row)
    lost = int(np.nansum(row.forgetting))
    (description,) = describe_file(tmp_path / "row.parquet")
    assert f"15 examples, {lost} of {RIGHT} right answers lost" in description.headline()


def test_an_answer_that_was_changed_on_disk_is_noticed(job, upstream, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    *_, row = job.run(upstream)
    path = tmp_path / "row.parquet"
    rows.write_row(path, row)
    table = pq.read_table(path)
    said = table["answer"].to_pylist()
    column = pa.array(["better", *said[1:]], pa.string())
    place = table.column_names.index("answer")
    pq.write_table(table.set_column(place, "answer", column), path)
    with pytest.raises(RowError, match="digest"):
        rows.read_row(path)


def test_losses_and_answers_do_not_mix_in_one_z(job, upstream, tmp_path):
    *_, answered = job.run(upstream)
    plain = SCORING.model_copy(update={"exact_match": None})
    settings = {**answered.settings, "scoring": plain.model_dump()}
    other = replace(answered, settings=settings, answers=None)
    files = {}
    for name, row in {"a": answered, "b": answered, "c": other}.items():
        files[name] = tmp_path / f"{name}.parquet"
        rows.write_row(files[name], with_identity(row, "m", name))
    with pytest.raises(RowError, match=r"c\.parquet: .*exact_match"):
        gather_row_files(files, "m")


def test_base_answers_of_another_normaliser_are_refused(job, upstream):
    plain = SCORING.exact_match.model_copy(update={"normaliser": "plain"})
    other = replace(job, scoring=SCORING.model_copy(update={"exact_match": plain}))
    with pytest.raises(RowError, match=r"other settings.*plain"):
        other.run(upstream)


def test_replay_measures_lost_answers_of_held_out_examples(job, upstream):
    settings = Replay(strategies=["random"], ratio=0.5, objective="text", dose="mixed")
    row = fine_tune_with_replay(job, upstream, settings.resolve("random"), task="t", seed=0)
    held = [example.example_id for example in upstream if example.split == "heldout"]
    assert row.example_ids == held
    lost = row.forgetting[np.isfinite(row.forgetting)]
    assert row.about["heldout_forgetting"] == pytest.approx(lost.mean())
    assert len(lost) == 3


def test_repeats_answer_again_in_other_batches(job, upstream):
    first, second = repeats.repeat(job, upstream, 1, 1, "t")
    assert first.answers.text == second.answers.text
    assert second.about["tokens_per_batch"] == 30


def test_plain_text_has_no_answer_and_is_refused(tokenizer):
    with pytest.raises(LetheError, match=r"exact_match: example 1 is plain text \('river'\)"):
        Questions.of(tokenizer, [Example("a", "b"), Example(text="river")], SCORING)


def test_long_prompts_lose_their_beginning_and_are_counted(tokenizer):
    scoring = SCORING.model_copy(update={"max_tokens": 5})
    examples = [Example("one", "1"), Example("the river of forgetting runs slow", "2")]
    short, long = Questions.of(tokenizer, examples, scoring).prompts
    assert len(long) == 5 and long[-1] == short[-1]
    assert Questions.of(tokenizer, examples, scoring).truncated == 1


class Flaky(Questions):
    """Every question is answered right, the first two only when all are asked together."""

    def ask(self, reader, asked=None, title="", *, checkpoint=None, part=""):
        said = [wanted if ask else None for wanted, ask in zip(self.targets, asked, strict=True)]
        if not all(asked):
            said[:2] = ["wrong" if ask else None for ask in asked[:2]]
        else:
            said[4] = "wrong"
        return said


def test_right_is_only_what_is_right_again_when_the_right_ones_are_asked_alone():
    questions = Flaky([[1]] * 5, list("abcde"), 0, "squad")
    answers = questions.base(None, "t", None)
    np.testing.assert_array_equal(answers.exact_match_before, [0, 0, 1, 1, 0])
    assert answers.text == ["wrong", "wrong", "c", "d", "wrong"]


def test_wrong_answers_are_asked_again_only_where_predictions_are_compared(job, upstream):
    model, tokenizer, row = job.run(upstream)
    measured = measure_changed_predictions(
        job, model, tokenizer, upstream=upstream, row=row, title="task"
    )
    gained = measured["answer_gained"]
    assert np.isnan(gained[:RIGHT]).all()
    assert set(gained[RIGHT:].tolist()) <= {0.0, 1.0}
    assert ((measured["answer_by_chance"] >= 0) & (measured["answer_by_chance"] <= 1)).all()
    still = changed(job, lr=0.0)
    model, tokenizer, row = still.run(upstream)
    measured = measure_changed_predictions(
        still, model, tokenizer, upstream=upstream, row=row, title="task"
    )
    np.testing.assert_array_equal(measured["answer_gained"][RIGHT:], 0)
    np.testing.assert_array_equal(measured["kl"], 0)
