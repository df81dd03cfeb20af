"""Replayed examples come from the pool's replayable part only, in files that trainers read."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from helpers.chats import pool, write_records

from lethe.completion.predictor import Predictor
from lethe.data.conversations import ChatReader
from lethe.data.examples import ids_of, read_upstream, upstream_digest
from lethe.data.training_rows import read_new_data
from lethe.errors import LetheError
from lethe.matrix.rows import Row
from lethe.replay.mixture_files import (
    by_example,
    dose_of,
    loss_words,
    make_mixture,
    measured_forgetting,
    predict_from_row,
    write_mixture,
    write_replayed,
)

POOL = pool()
REPLAYABLE = {example.example_id for example in POOL if example.split == "replayable"}


@pytest.fixture
def new(tmp_path):
    return read_new_data(write_records(tmp_path / "in/chats.jsonl", "messages"))


def ids(mixture):
    return [item.upstream.example_id for item in mixture.replayed]


def row(values, base=1.0, **settings):
    count = len(POOL)
    before = np.full(count, base, dtype=np.float32)
    return Row(
        example_ids=ids_of(POOL),
        loss_before=before,
        loss_after=(before + values).astype(np.float32),
        n_tokens=np.ones(count, dtype=np.int32),
        settings={"upstream": upstream_digest(POOL), **settings},
    )


def test_a_random_draw_is_even_over_domains_and_holds_nothing_that_is_held_out(new):
    mixture = make_mixture(new, POOL, ratio=0.45, seed=0)
    assert len(mixture.replayed) == 9
    assert set(ids(mixture)) <= REPLAYABLE
    assert set(Counter(item.upstream.domain for item in mixture.replayed).values()) == {3}
    assert ids(mixture) == ids(make_mixture(new, POOL, ratio=0.45, seed=0))
    assert ids(mixture) != ids(make_mixture(new, POOL, ratio=0.45, seed=1))
    assert mixture.left_out == {"held out": 10}
    assert "forgetting" not in str(mixture.replayed[0].labels("measured_forgetting"))


def test_a_copy_of_a_held_out_text_is_not_replayed(new):
    heldout = next(example for example in POOL if example.split == "heldout")
    copy = replace(heldout, example_id="talks-99999", split="replayable")
    mixture = make_mixture(new, [*POOL, copy], ratio=1.0, seed=0)
    assert copy.example_id not in ids(mixture)
    assert mixture.left_out["copies of held-out examples"] == 1


def test_more_draws_than_examples_use_all_before_one_repeats(new):
    drawn = ids(make_mixture(new, POOL, ratio=1.6, seed=0))
    assert len(drawn) == 32
    assert set(drawn) == REPLAYABLE


def test_what_is_forgotten_most_is_replayed(new, tmp_path):
    values = np.zeros(len(POOL))
    worst = [4, 8, 12, 16]
    values[worst] = 5.0
    values[3] = 9.0  # held out
    values[0] = np.nan
    forgetting = measured_forgetting(row(values), POOL, tmp_path / "lost.parquet")
    mixture = make_mixture(new, POOL, ratio=0.2, seed=0, forgetting=forgetting)
    assert sorted(ids(mixture)) == sorted(POOL[i].example_id for i in worst)
    assert mixture.left_out == {"held out": 10, "without a value of forgetting": 1}
    assert mixture.replayed[0].labels("measured_forgetting")["measured_forgetting"] == 5.0


def test_forgetting_of_another_pool_or_of_no_fine_tune_is_refused(tmp_path):
    values = np.ones(len(POOL))
    with pytest.raises(LetheError, match="measured on another pool"):
        measured_forgetting(row(values, upstream="x"), POOL, tmp_path)
    with pytest.raises(LetheError, match="losses of one model.*lethe compare"):
        measured_forgetting(row(values * 0), POOL, tmp_path)
    # An example that could not be scored has no loss before and none after.
    unscored = np.where(np.arange(len(POOL)) == 2, np.nan, 1.0)
    with pytest.raises(LetheError, match="losses of one model.*lethe compare"):
        measured_forgetting(row(values * 0, base=unscored), POOL, tmp_path)


def predictor(**changes):
    rng = np.random.default_rng(0)
    train = rng.normal(size=(6, len(POOL))).astype(np.float32)
    index = np.array([1, 5, 9, 13])
    fields = {
        "train": train,
        "example_ids": ids_of(POOL),
        "domains": np.array([example.domain for example in POOL]),
        "index": index,
        "probes": [POOL[i].example for i in index],
        "max_tokens": 40,
        "base_losses": np.full(4, 1.0),
    }
    return Predictor(**fields | changes)


def predicted_forgetting(predictor, probes, path, sibling=None):
    prediction = predict_from_row(predictor, probes, POOL, path, sibling=sibling)
    return by_example(predictor, prediction)


def test_forgetting_is_predicted_from_losses_or_from_differences(tmp_path):
    values = np.linspace(0, 1, len(POOL))
    made = predictor()
    wanted = made.predict(row(values).forgetting[made.index].astype(float)).forgetting
    by_difference = predicted_forgetting(made, row(values), tmp_path)
    scored = row(values)
    scored = Row(
        example_ids=scored.example_ids,
        loss_before=scored.loss_after,
        loss_after=scored.loss_after,
        n_tokens=scored.n_tokens,
        settings=scored.settings,
    )
    by_loss = predicted_forgetting(made, scored, tmp_path)
    assert list(by_difference) == ids_of(POOL)
    np.testing.assert_allclose(list(by_difference.values()), wanted, atol=1e-5)
    np.testing.assert_allclose(list(by_loss.values()), wanted, atol=1e-5)
    with pytest.raises(LetheError, match="lacks those of the base model"):
        predicted_forgetting(predictor(base_losses=None), scored, tmp_path)
    values[5] = np.nan
    with pytest.raises(LetheError, match="probe 'talks-00005' has no loss"):
        predicted_forgetting(made, row(values), tmp_path)
    part = row(values).select(ids_of(POOL)[:6])
    with pytest.raises(LetheError, match="lost.parquet: lacks 2 of the 4 examples.*books-00009"):
        predicted_forgetting(made, part, tmp_path / "lost.parquet")
    other = predictor(probes=[POOL[0].example] * 4)
    with pytest.raises(LetheError, match="made on another pool"):
        predicted_forgetting(other, row(values), tmp_path)


def test_the_row_of_a_sibling_enters_the_prediction(tmp_path):
    made = predictor()
    rng = np.random.default_rng(2)
    other = made.train + 0.01 * rng.normal(size=made.train.shape).astype(np.float32)
    both = predictor(other=other)
    values = np.linspace(0, 1, len(POOL))
    row_of_sibling = row(np.linspace(1, 0, len(POOL)))
    predicted = predicted_forgetting(both, row(values), tmp_path, sibling=row_of_sibling)
    expected = both.predict(
        row(values).forgetting[both.index].astype(float),
        other=row_of_sibling.forgetting.astype(float),
    )
    np.testing.assert_allclose(list(predicted.values()), expected.forgetting, atol=1e-6)
    without = predicted_forgetting(both, row(values), tmp_path)
    assert predicted != without
    part = row_of_sibling.select(ids_of(POOL)[1:])
    with pytest.raises(LetheError, match="the sibling's row: lacks 1 of the"):
        predicted_forgetting(both, row(values), tmp_path, sibling=part)
    with pytest.raises(LetheError, match="holds no rows of one"):
        predicted_forgetting(made, row(values), tmp_path, sibling=row_of_sibling)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs_with_a_system_text_become_messages(tmp_path):
    records = []
    for number in range(4):
        record = {"prompt": f"q{number}", "completion": f"a{number}"}
        records.append(record | ({"system": "Be short."} if number < 2 else {}))
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    new = read_new_data(path)
    assert new.form == "messages"
    write_mixture(tmp_path / "mixed", make_mixture(new, POOL, ratio=0.5, seed=0))
    rows = lines(tmp_path / "mixed/new.jsonl")
    assert [len(row["messages"]) for row in rows] == [3, 3, 2, 2]
    assert rows[0]["messages"][0] == {"role": "system", "content": "Be short."}
    mixture = make_mixture(replace(new, form="prompt_completion"), POOL, ratio=0.5, seed=0)
    with pytest.raises(LetheError, match="rows of prompt_completion cannot hold"):
        write_mixture(tmp_path / "other", mixture)
    assert not (tmp_path / "other").exists()


def test_files_hold_all_rows_with_and_without_labels(new, tmp_path):
    values = np.linspace(0.1, 1, len(POOL))
    forgetting = dict(zip(ids_of(POOL), values, strict=True))
    mixture = make_mixture(new, POOL, ratio=0.6, seed=3, forgetting=forgetting)
    counts = write_mixture(tmp_path / "out", mixture)
    written = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.jsonl")}
    assert written == set(counts)
    rows = {name: lines(tmp_path / "out" / name) for name in counts}
    assert {name: len(content) for name, content in rows.items()} == counts
    assert counts["new.jsonl"] == 20 and counts["train_with_replay.jsonl"] == 32
    plain = rows["plain/replay.messages.jsonl"]
    assert [set(row) for row in plain] == [{"messages"}] * 12
    labels = ("example_id", "domain", "measured_forgetting")
    for labelled, bare in zip(rows["replay.messages.jsonl"], plain, strict=True):
        assert labelled["measured_forgetting"] == forgetting[labelled["example_id"]]
        assert {key: labelled[key] for key in labelled if key not in labels} == bare
    # The order of the mixture: nothing is lost, and replayed rows are spread over it.
    mixed = rows["train_with_replay.jsonl"]
    assert [row for row in mixed if row in rows["new.jsonl"]] == rows["new.jsonl"]
    assert [row for row in mixed if row in plain] == plain
    places = [number for number, row in enumerate(mixed) if row in plain]
    assert max(np.diff(places)) <= 4
    halves = counts["plain/replay.chats.jsonl"] + counts["plain/replay.passages.jsonl"]
    assert halves == 12
    again = tmp_path / "again"
    write_mixture(again, make_mixture(new, POOL, ratio=0.6, seed=3, forgetting=forgetting))
    for name in counts:
        assert (again / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_the_dose_is_replayed_over_new_loss(new):
    mixture = make_mixture(new, POOL, ratio=0.1, seed=0)
    dose = dose_of(mixture, loss_words, "words")
    # Ten answers of two words, and ten conversations of two plus three.
    assert (dose.unit, dose.new) == ("words", 10 * 2 + 10 * 5)
    wanted = 0
    for item in mixture.replayed:
        text = item.upstream.example.text
        answer = item.upstream.example.answer
        wanted += len(answer.split()) if text is None else 9 - 9 // 4
    assert dose.replayed == wanted
    assert dose.share == wanted / 70


def test_calls_of_tools_count_in_the_dose(new):
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    question = {"role": "user", "content": "Weather in Oslo?"}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    example = ChatReader()({"messages": [question, answer]})
    only_calls = replace(new, examples=[example] * 10)
    dose = dose_of(make_mixture(only_calls, POOL, ratio=0.1, seed=0), loss_words, "words")
    assert dose.new == 10 * len(json.dumps([call]).split())
    assert np.isfinite(dose.share)


def test_a_turn_without_an_answer_has_no_words_with_loss():
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "three four"},
    ]
    assert loss_words(ChatReader()({"messages": turns})) == 2


def test_a_question_among_plain_texts_carries_loss_like_its_answer(tmp_path):
    new = read_new_data(write_records(tmp_path / "chats.jsonl", "text"))
    mixture = make_mixture(new, POOL, ratio=1.0, seed=0)
    folder = tmp_path / "mixed"
    write_mixture(folder, mixture)
    rows = lines(folder / "plain/replay.text.jsonl")
    assert any(item.upstream.example.text is None for item in mixture.replayed)
    dose = dose_of(mixture, loss_words, "words")
    assert dose.replayed == sum(len(row["text"].split()) for row in rows)


def test_a_trainer_that_learns_all_of_a_plain_text_among_chats_has_a_higher_dose(new, tmp_path):
    mixture = make_mixture(new, POOL, ratio=0.6, seed=0)
    as_answers = dose_of(mixture, loss_words, "words")
    whole = dose_of(mixture, loss_words, "words", plain_passages=True)
    beginnings = 0
    for item in mixture.replayed:
        if item.upstream.example.text is not None:
            beginnings += len(item.upstream.example.text.split()) // 4
    assert beginnings > 0
    assert whole.replayed == as_answers.replayed + beginnings
    assert whole.new == as_answers.new


def test_a_form_that_holds_no_conversation_leaves_them_in_the_pool(tmp_path):
    new = read_new_data(write_records(tmp_path / "chats.jsonl", "text"))
    mixture = make_mixture(new, POOL, ratio=0.5, seed=0)
    assert {item.upstream.domain for item in mixture.replayed} == {"books", "facts"}
    assert mixture.left_out["conversations, which rows of text cannot hold"] == 10
    talks = [example for example in POOL if example.domain == "talks"]
    with pytest.raises(LetheError, match="no example of the pool can be replayed"):
        make_mixture(new, talks, ratio=0.5, seed=0)


def test_a_mixture_knows_whether_it_has_tools(new):
    assert not make_mixture(new, POOL, ratio=0.3, seed=0).has_tools
    chat = {"messages": new.examples[1].conversation()[0], "tools": [{"type": "function"}]}
    with_tools = replace(new, examples=[*new.examples, ChatReader()(chat)])
    assert make_mixture(with_tools, POOL, ratio=0.3, seed=0).has_tools


def test_the_replayed_examples_are_a_pool_of_their_own(new, tmp_path):
    mixture = make_mixture(new, POOL, ratio=2.0, seed=0)
    write_replayed(tmp_path / "replay.parquet", mixture)
    written = list(read_upstream(tmp_path / "replay.parquet"))
    assert len(mixture.replayed) == 40
    assert {example.example_id for example in written} == REPLAYABLE
    assert len(written) == 30
    assert {example.split for example in written} == {"replayable"}


def test_new_chats_that_the_pool_holds_out_are_counted(new):
    heldout = [example for example in POOL if example.split == "heldout"]
    same = replace(heldout[0], example=new.examples[0], example_id="talks-77777")
    assert make_mixture(new, POOL, ratio=0.2, seed=0).new_heldout == 0
    assert make_mixture(new, [*POOL, same], ratio=0.2, seed=0).new_heldout == 1


def test_probes_of_other_lengths_than_the_predictors_are_refused(tmp_path):
    values = np.linspace(0, 1, len(POOL))
    same = predictor(scored_tokens=np.ones(4, dtype=np.int64))
    assert predicted_forgetting(same, row(values), tmp_path)
    longer = predictor(scored_tokens=np.array([1, 1, 7, 1]))
    with pytest.raises(LetheError, match=r"1 of 4 probes have another number of scored tokens"):
        predicted_forgetting(longer, row(values), tmp_path)


def test_probes_that_are_the_base_models_own_losses_are_refused(tmp_path):
    values = np.zeros(len(POOL))
    path = tmp_path / "base.parquet"
    with pytest.raises(LetheError, match=r"base.parquet: these are the losses of the base model"):
        predicted_forgetting(predictor(), row(values), path)
    with pytest.raises(LetheError, match=r"base model itself \(none of the 4 probes differs"):
        predicted_forgetting(predictor(), row(values + 2e-6), path)
    values[5] = 0.01
    assert predicted_forgetting(predictor(), row(values), path)


def test_probes_of_a_fine_tune_of_another_model_are_refused(tmp_path):
    values = np.linspace(0.1, 1, len(POOL))
    path = tmp_path / "lost.parquet"
    single = {"scoring": {"dtype": "float32"}}
    refusal = r"lost.parquet: the losses are not those of the predictor's base model.*facts-00001"
    with pytest.raises(LetheError, match=refusal):
        predicted_forgetting(predictor(), row(values, base=1.02, **single), path)
    with pytest.raises(LetheError, match=refusal):
        predicted_forgetting(predictor(), row(values, base=1.2), path)
    # In another precision, the same model has other losses.
    half = {"scoring": {"dtype": "bfloat16"}}
    assert predicted_forgetting(predictor(), row(values, base=1.02, **half), path)
    quantized = single | {"quantize": "4bit"}
    assert predicted_forgetting(predictor(), row(values, base=1.02, **quantized), path)
    assert predicted_forgetting(predictor(dtype="autocast"), row(values, base=1.02, **single), path)
    assert predicted_forgetting(predictor(base_losses=None), row(values, base=3.0), path)
