import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from helpers import chats, tiny
from helpers.trainers import padded

from lethe.completion.predictor import Predictor, template_of_card
from lethe.config.model_settings import LoRA
from lethe.data.examples import Example, read_upstream, write_upstream
from lethe.data.tokens import tokenise
from lethe.engine import models
from lethe.engine.scoring import score
from lethe.errors import LetheError
from lethe.integrations import ForgettingProbe
from lethe.matrix import forgetting_matrix, rows

UPSTREAM = tiny.upstream(40)
TASK = tiny.tokens(*[(20, 4)] * 24)


@pytest.fixture
def predictor():
    rng = np.random.default_rng(0)
    train = rng.normal(size=(8, 3)) @ rng.normal(size=(3, 40)) * 0.1
    return Predictor(
        train=train.astype(np.float32),
        example_ids=[example.example_id for example in UPSTREAM],
        domains=np.array([example.domain for example in UPSTREAM]),
        index=np.arange(0, 40, 5),
        probes=[UPSTREAM[i].example for i in range(0, 40, 5)],
        max_tokens=24,
    )


def make_trainer(model, folder, tokenizer, kind=transformers.Trainer, **changes):
    arguments = {
        "learning_rate": 3e-2,
        "num_train_epochs": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "logging_steps": 100,
    }
    return kind(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(folder), per_device_train_batch_size=4, **arguments | changes
        ),
        train_dataset=TASK,
        eval_dataset=TASK[:4],
        data_collator=padded,
        processing_class=tokenizer,
    )


def test_it_logs_what_the_completion_model_makes_of_the_probes(predictor, tokenizer, tmp_path):
    model = tiny.model("llama", scale=1)
    base = copy.deepcopy(model)
    trainer = make_trainer(model, tmp_path, tokenizer)
    probe = ForgettingProbe.attach(trainer, predictor)
    trainer.train()
    tokens = tokenise(tokenizer, predictor.probes, 24).examples
    values = score(model, tokens, 2048).losses - score(base, tokens, 2048).losses
    expected = predictor.predict(values)
    logged = [line for line in trainer.state.log_history if "forgetting/mean" in line]
    assert [line["step"] for line in logged] == [2, 4, 6]
    last = logged[-1]
    # Probed examples count with their measured values.
    completed = expected.forgetting.copy()
    completed[predictor.index] = values
    assert last["forgetting/mean"] == pytest.approx(completed.mean(), abs=1e-6)
    assert last["forgetting/low"] < last["forgetting/mean"]
    assert last["forgetting/mean_low"] == pytest.approx(expected.mean.low, abs=1e-6)
    assert last["forgetting/mean_low"] < last["forgetting/mean"] < last["forgetting/mean_high"]
    mean_of_a = completed[predictor.domains == "a"].mean()
    assert last["forgetting/a"] == pytest.approx(mean_of_a, abs=1e-6)
    assert last["forgetting/a/low"] < mean_of_a < last["forgetting/a/high"]
    assert probe.summary() == probe.prediction.summary(predictor.top_tenth)
    assert abs(np.mean(values)) > 1e-3
    assert probe.history[-1]["step"] == 6


@pytest.mark.parametrize("every", [None, 1, 2, 3])
def test_the_trainers_own_logs_stay_as_they_are(predictor, tokenizer, tmp_path, every):
    trainer = make_trainer(tiny.model("llama"), tmp_path, tokenizer, logging_steps=2)
    ForgettingProbe.attach(trainer, predictor, every=every)
    trainer.train()
    losses = [line["step"] for line in trainer.state.log_history if "loss" in line]
    assert losses == [2, 4, 6]


def test_the_row_of_a_sibling_enters_every_prediction(predictor, tokenizer, tmp_path):
    # Noise that both models share is all that the probes cannot tell.
    shared = 0.1 * np.random.default_rng(1).normal(size=predictor.train.shape)
    train = predictor.train + shared
    other = train + 0.01 * np.random.default_rng(2).normal(size=train.shape)
    both = replace(predictor, train=train, other=other)
    row = np.linspace(0, 1, 40)
    trainer = make_trainer(tiny.model("llama", scale=1), tmp_path, tokenizer)
    probe = ForgettingProbe.attach(trainer, both, other=row)
    trainer.train()
    values = forgetting_by_probe(probe, trainer)
    expected = both.predict(values, other=row).mean.value
    assert probe.history[-1]["forgetting/mean"] == pytest.approx(expected, abs=1e-6)
    assert expected != pytest.approx(both.predict(values).mean.value, abs=1e-6)
    with pytest.raises(LetheError, match="holds no rows of one"):
        ForgettingProbe(predictor, other=row)
    with pytest.raises(LetheError, match=r"shape \(3,\), but the predictor has 40 examples"):
        ForgettingProbe(both, other=row[:3])


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, dropout=0.5)])
def test_the_training_is_the_same_with_and_without_it(predictor, tokenizer, tmp_path, lora):
    def make_model():
        model = tiny.model("llama", scale=1)
        return model if lora is None else models.add_lora(model, lora, 0)

    plain = make_model()
    watched = make_model()
    make_trainer(plain, tmp_path / "a", tokenizer).train()
    second = make_trainer(watched, tmp_path / "b", tokenizer)
    ForgettingProbe.attach(second, predictor, every=1)
    second.train()
    for value, expected in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(value, expected)


def test_modules_in_evaluation_mode_stay_in_it(predictor, tokenizer, tmp_path):
    model = tiny.model("llama", scale=1)
    probe = ForgettingProbe(predictor, tokenizer=tokenizer)
    state = transformers.TrainerState()
    model.train()
    frozen = model.get_input_embeddings()
    frozen.eval()
    probe.on_train_begin(None, state, None, model=model)
    assert not frozen.training and model.training


def test_it_stops_the_training_at_its_limit_and_names_domains(
    predictor, tokenizer, tmp_path, caplog
):
    model = tiny.model("llama", scale=1)
    trainer = make_trainer(model, tmp_path, tokenizer)
    probe = ForgettingProbe.attach(trainer, predictor, every=1, limit=-100.0, risk=-100.0)
    trainer.train()
    assert trainer.state.global_step == 1
    assert sorted(probe.at_risk) == ["a", "b"]
    assert "stopped at step 1" in caplog.text and "at risk: " in caplog.text


def test_a_resumed_training_needs_the_losses_of_the_true_base(predictor, tokenizer):
    model = tiny.model("llama", scale=1)
    state = transformers.TrainerState(global_step=5)
    with pytest.raises(LetheError, match="resumes at step 5"):
        ForgettingProbe(predictor, tokenizer=tokenizer).on_train_begin(
            None, state, None, model=model
        )
    first_start = np.zeros(8)
    probe = ForgettingProbe(predictor, tokenizer=tokenizer, base_losses=first_start)
    probe.on_train_begin(None, state, None, model=model)
    assert probe.base_losses is first_start
    predictor.base_losses = np.ones(8)
    probe = ForgettingProbe(predictor, tokenizer=tokenizer)
    probe.on_train_begin(None, state, None, model=model)
    np.testing.assert_array_equal(probe.base_losses, 1)


class FirstIsBest(transformers.Trainer):
    """Calls the first checkpoint the best one."""

    def evaluate(self, *args, **kwargs):
        metrics = super().evaluate(*args, **kwargs)
        metrics["eval_loss"] = float(self.state.global_step)
        return metrics


def forgetting_by_probe(probe, trainer):
    tokens = tokenise(trainer.processing_class, probe.predictor.probes, 24).examples
    losses = score(trainer.model, tokens, 2048).losses
    return losses - probe.base_losses


def forgetting_of_probes(probe, trainer):
    return float(forgetting_by_probe(probe, trainer).mean())


def test_the_last_measurement_is_of_the_best_model_if_that_is_loaded(
    predictor, tokenizer, tmp_path
):
    trainer = make_trainer(
        tiny.model("llama", scale=1),
        tmp_path,
        tokenizer,
        kind=FirstIsBest,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=False,
    )
    probe = ForgettingProbe.attach(trainer, predictor)
    trainer.train()
    assert [line["step"] for line in probe.history] == [2, 4, 6, 6]
    last = probe.history[-1]["probes/mean_rise"]
    assert last == pytest.approx(forgetting_of_probes(probe, trainer), abs=1e-6)
    assert last == pytest.approx(probe.history[0]["probes/mean_rise"], abs=1e-6)
    assert last != pytest.approx(probe.history[2]["probes/mean_rise"], abs=1e-4)


def test_a_second_training_is_measured_against_the_same_base(predictor, tokenizer, tmp_path):
    trainer = make_trainer(tiny.model("llama", scale=1), tmp_path, tokenizer)
    probe = ForgettingProbe.attach(trainer, predictor)
    trainer.train()
    base = probe.base_losses
    trainer.train()
    assert [line["step"] for line in probe.history] == [2, 4, 6, 2, 4, 6]
    assert probe.base_losses is base
    last = probe.history[-1]["probes/mean_rise"]
    assert last == pytest.approx(forgetting_of_probes(probe, trainer), abs=1e-6)


def test_an_evaluation_before_the_training_measures_the_base(predictor, tokenizer, tmp_path):
    model = tiny.model("llama", scale=1)
    base = copy.deepcopy(model)
    trainer = make_trainer(model, tmp_path, tokenizer)
    probe = ForgettingProbe.attach(trainer, predictor)
    trainer.evaluate()
    tokens = tokenise(tokenizer, predictor.probes, 24).examples
    np.testing.assert_allclose(probe.base_losses, score(base, tokens, 2048).losses)
    assert probe.history == []
    trainer.train()
    trainer.evaluate()
    assert [line["step"] for line in probe.history] == [2, 4, 6]


@pytest.mark.parametrize("every", [0, -1, 0.5])
def test_a_number_of_steps_below_one_is_refused(predictor, every):
    with pytest.raises(LetheError, match=f"every must be 1 or more .value seen: {every}"):
        ForgettingProbe(predictor, every=every)


@pytest.mark.parametrize("name", ["limit", "risk"])
def test_a_limit_that_is_nan_is_refused(predictor, name):
    with pytest.raises(LetheError, match=f"{name} is NaN"):
        ForgettingProbe(predictor, **{name: float("nan")})


class Processor:
    """Holds a tokenizer, as the processor of a model of images and text does."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer


def test_the_tokenizer_of_a_processor_is_used(predictor, tokenizer):
    model = tiny.model("llama", scale=1)
    losses = []
    for processing_class in (tokenizer, Processor(tokenizer)):
        probe = ForgettingProbe(predictor)
        state = transformers.TrainerState()
        probe.on_train_begin(None, state, None, model=model, processing_class=processing_class)
        losses.append(probe.base_losses)
    np.testing.assert_array_equal(losses[0], losses[1])


@pytest.mark.parametrize("processing_class", [None, object(), Processor(None)])
def test_a_trainer_without_a_tokenizer_is_refused(predictor, processing_class):
    state = transformers.TrainerState()
    with pytest.raises(LetheError, match="the trainer has no tokenizer"):
        ForgettingProbe(predictor).on_train_begin(
            None,
            state,
            None,
            model=tiny.model("llama", scale=1),
            processing_class=processing_class,
        )


TEMPLATE = (
    "{% for m in messages %}user: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def pair_predictor(predictor):
    """A predictor whose probes are prompts and answers."""
    predictor.probes = tiny.pairs(8)
    predictor.max_tokens = 40
    return predictor


def with_template(tokenizer, template):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(("stored", "trainers"), [("", TEMPLATE), (TEMPLATE, None)])
def test_probes_are_read_with_the_template_of_the_experiment(
    pair_predictor, tokenizer, tmp_path, stored, trainers
):
    model = tiny.model("llama", scale=1)
    pair_predictor.chat_template = stored
    pair_predictor.save(tmp_path / "p.npz")
    probe = ForgettingProbe(tmp_path / "p.npz")
    processing_class = with_template(tokenizer, trainers)
    state = transformers.TrainerState()
    probe.on_train_begin(None, state, None, model=model, processing_class=processing_class)
    experiments = with_template(tokenizer, stored or None)
    tokens = tokenise(
        experiments, pair_predictor.probes, 40, truncation="right", include_eos=False
    ).examples
    np.testing.assert_array_equal(probe.base_losses, score(model, tokens, 2048).losses)
    assert processing_class.chat_template == trainers


def test_a_tokenizer_that_reads_probes_differently_is_refused(predictor, tokenizer):
    predictor.scored_tokens = np.full(8, 3)
    probe = ForgettingProbe(predictor, tokenizer=tokenizer)
    with pytest.raises(LetheError, match=f"probe '{UPSTREAM[0].example_id}' has 22 scored tokens"):
        probe.on_train_begin(
            None, transformers.TrainerState(), None, model=tiny.model("llama", scale=1)
        )


def test_a_probe_without_a_scored_token_is_named(pair_predictor, tokenizer):
    pair_predictor.max_tokens = 2
    probe = ForgettingProbe(pair_predictor, tokenizer=tokenizer)
    with pytest.raises(LetheError, match="has no scored token within 2 tokens"):
        probe.on_train_begin(
            None, transformers.TrainerState(), None, model=tiny.model("llama", scale=1)
        )


def measured_by(model, predictor, tokenizer):
    """The predictor with the base losses of this model."""
    tokens = tokenise(tokenizer, predictor.probes, 24).examples
    predictor.base_losses = score(model, tokens, 2048).losses.astype(float)
    predictor.scored_tokens = np.array([example.scored for example in tokens])
    return predictor


def test_another_base_model_is_refused_by_its_losses(predictor, tokenizer, tmp_path):
    base = tiny.model("llama", scale=1)
    measured_by(base, predictor, tokenizer).save(tmp_path / "p.npz")
    state = transformers.TrainerState()
    probe = ForgettingProbe(tmp_path / "p.npz", tokenizer=tokenizer)
    probe.on_train_begin(None, state, None, model=base)
    foreign = tiny.model("llama", seed=1, scale=2)
    probe = ForgettingProbe(tmp_path / "p.npz", tokenizer=tokenizer)
    with pytest.raises(LetheError, match=r"not those of the predictor's base model.*nats here"):
        probe.on_train_begin(None, state, None, model=foreign)
    with pytest.raises(LetheError, match="not those of the predictor's base model"):
        ForgettingProbe(tmp_path / "p.npz", base_losses=np.zeros(8))


def test_a_base_model_in_bfloat16_is_accepted(predictor, tokenizer):
    base = tiny.model("llama", scale=1)
    measured_by(base, predictor, tokenizer)
    probe = ForgettingProbe(predictor, tokenizer=tokenizer)
    state = transformers.TrainerState()
    probe.on_train_begin(None, state, None, model=copy.deepcopy(base).to(torch.bfloat16))
    assert 0 < np.abs(probe.base_losses - predictor.base_losses).max() < 0.1


class Ruins(transformers.TrainerCallback):
    """Makes the weights NaN at the third step."""

    def on_step_end(self, args, state, control, model=None, **_kwargs):
        if state.global_step == 3:
            with torch.no_grad():
                next(model.parameters()).fill_(float("nan"))


def test_nan_losses_are_a_fault_and_not_below_the_limit(predictor, tokenizer, tmp_path):
    trainer = make_trainer(tiny.model("llama", scale=1), tmp_path, tokenizer)
    trainer.add_callback(Ruins())
    probe = ForgettingProbe.attach(trainer, predictor, every=1, limit=100.0)
    with pytest.raises(LetheError, match=r"loss at step 3 on probe .* is nan \(8 of 8 probes\)"):
        trainer.train()
    assert [line["step"] for line in probe.history] == [1, 2]


def test_base_losses_that_are_nan_or_of_another_length_are_refused(predictor):
    with pytest.raises(LetheError, match="loss in base_losses on probe .* is nan"):
        ForgettingProbe(predictor, base_losses=np.full(8, np.nan))
    with pytest.raises(LetheError, match="has 8 probes; give one loss per probe"):
        ForgettingProbe(predictor, base_losses=np.zeros(7))


def test_it_works_in_trls_trainer(predictor, tokenizer, tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed; pip install trl")
    datasets = pytest.importorskip("datasets")
    model = tiny.model("llama", scale=1)
    texts = datasets.Dataset.from_list([{"text": e.example.text} for e in UPSTREAM])
    lines = []
    for probed in (False, True):
        arguments = trl.SFTConfig(
            output_dir=str(tmp_path),
            report_to=[],
            use_cpu=True,
            max_steps=3,
            save_strategy="no",
            logging_steps=3,
        )
        trainer = trl.SFTTrainer(
            model=copy.deepcopy(model),
            args=arguments,
            train_dataset=texts,
            processing_class=tokenizer,
        )
        if probed:
            probe = ForgettingProbe.attach(trainer, predictor, every=1)
        trainer.train()
        (line,) = [line for line in trainer.state.log_history if "loss" in line]
        lines.append({key: line[key] for key in ("loss", "mean_token_accuracy")})
    assert [line["step"] for line in probe.history] == [1, 2, 3]
    # SFTTrainer averages its own metrics over the steps since its last log.
    assert lines[0] == lines[1]


def test_a_saved_predictor_predicts_the_same_and_holds_no_pickle(predictor, tmp_path):
    path = tmp_path / "predictor.npz"
    predictor.save(path)
    again = Predictor.load(path)
    values = np.linspace(-0.1, 0.3, 8)
    for value, expected in zip(
        vars(again.predict(values)).values(),
        vars(predictor.predict(values)).values(),
        strict=True,
    ):
        np.testing.assert_array_equal(value, expected)
    assert again.probes == predictor.probes
    with np.load(path, allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays.files)


def test_a_file_of_an_earlier_version_has_no_base_losses(predictor, tmp_path):
    predictor.save(tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz", allow_pickle=False) as arrays:
        contents = dict(arrays)
    assert "base_losses" not in contents
    settings = json.loads(str(contents["settings"]))
    for name in ("truncation", "chat_template", "dtype"):
        del settings[name]
    np.savez(tmp_path / "old.npz", **contents | {"settings": np.array(json.dumps(settings))})
    earlier = Predictor.load(tmp_path / "old.npz")
    assert (earlier.base_losses, earlier.chat_template) == (None, None)


@pytest.mark.parametrize("content", [b"no npz", None])
def test_a_file_that_is_no_predictor_is_named(tmp_path, content):
    path = tmp_path / "p.npz"
    if content is None:
        np.savez(path, told=np.array({"a": 1}, dtype=object))
    else:
        path.write_bytes(content)
    with pytest.raises(LetheError, match=r"p\.npz: not a saved completion model"):
        Predictor.load(path)


def test_a_finished_experiment_gives_a_predictor(tmp_path):
    folder = tmp_path / "results/e/m"
    rng = np.random.default_rng(1)
    ids = [example.example_id for example in UPSTREAM]
    values = rng.normal(size=(6, 40)).astype(np.float32)
    values[:, 7], values[2, 8] = np.nan, np.nan
    forgetting_matrix.write_matrix(
        folder / "Z.parquet", forgetting_matrix.Matrix(values, [f"t{i}" for i in range(6)], ids)
    )
    write_upstream(tmp_path / "results/e/upstream.parquet", UPSTREAM)
    settings = {"scoring": {"max_tokens": 24, "include_eos": False}}
    losses = np.arange(40, dtype=np.float32)
    row = rows.Row(ids, losses, losses, np.arange(1, 41, dtype=np.int32), settings)
    rows.write_row(folder / "base.parquet", row)
    made = Predictor.from_results(folder, probes=5)
    assert len(made.index) == len(made.probes) == 5
    assert made.example_ids == ids[:7] + ids[8:] and made.train.shape == (6, 39)
    chosen = [made.example_ids[i] for i in made.index]
    assert made.probes == [UPSTREAM[ids.index(name)].example for name in chosen]
    assert ids[8] not in chosen
    assert json.dumps(made.max_tokens) == "24"
    positions = [ids.index(name) for name in chosen]
    np.testing.assert_array_equal(made.base_losses, positions)
    np.testing.assert_array_equal(made.scored_tokens, np.array(positions) + 1)
    assert made.chat_template is None
    cheap = Predictor.from_results(folder, probes=None, token_budget=60)
    assert cheap.scored_tokens.sum() <= 60
    other = tmp_path / "results/other/small"
    forgetting_matrix.write_matrix(
        other / "Z.parquet",
        forgetting_matrix.Matrix(values[1:, ::-1], [f"t{i}" for i in range(1, 6)], ids[::-1]),
    )
    both = Predictor.from_results(folder, probes=5, sibling=other)
    np.testing.assert_array_equal(both.index, made.index)
    assert both.other_model == "small" and both.other.shape == (6, 39)
    assert np.isnan(both.other[0]).all()
    np.testing.assert_array_equal(both.other[1:], made.train[1:])
    write_upstream(tmp_path / "results/e/upstream.parquet", UPSTREAM[:30])
    with pytest.raises(LetheError, match="10 examples of Z"):
        Predictor.from_results(folder, probes=5)
    write_upstream(tmp_path / "results/e/upstream.parquet", UPSTREAM)
    settings["scoring"]["exact_match"] = {"max_new_tokens": 8}
    rows.write_row(folder / "base.parquet", row)
    with pytest.raises(LetheError, match="needs an experiment that measures losses"):
        Predictor.from_results(folder, probes=5)


def test_the_template_of_the_rows_is_in_the_predictor(tmp_path):
    results = tmp_path / "results/e/m"
    model = tmp_path / "results/e/m/base"
    model.mkdir(parents=True)
    card = {"path": "results/e/m/base"}
    assert template_of_card(card | {"chat_template": "t"}, results) == "t"
    assert template_of_card(card | {"chat_template": ""}, results) == ""
    assert template_of_card(card, results) is None, "the model's files are not on this machine"
    (model / "tokenizer_config.json").write_text("{}")
    assert template_of_card(card, results) == ""
    (model / "tokenizer_config.json").write_text('{"chat_template": "own"}')
    assert template_of_card(card, results) == "own"
    (model / "chat_template.jinja").write_text("in a file")
    assert template_of_card(card, results) == "in a file"


def test_the_last_weights_below_the_limit_are_kept(predictor, tokenizer, tmp_path, caplog):
    watched = make_trainer(tiny.model("llama", scale=1), tmp_path / "a", tokenizer)
    means = ForgettingProbe.attach(watched, predictor, every=1)
    watched.train()
    history = [line["forgetting/mean"] for line in means.history]
    # A limit that the training crosses for the first time at a step after the first.
    crossing = next(i for i in range(1, len(history)) if history[i] > max(history[:i]))
    limit = (history[crossing] + max(history[:crossing])) / 2
    trainer = make_trainer(tiny.model("llama", scale=1), tmp_path / "b", tokenizer)
    probe = ForgettingProbe.attach(trainer, predictor, every=1, limit=limit, keep_below_limit=True)
    trainer.train()
    assert trainer.state.global_step == crossing + 1
    assert f"has the weights of step {crossing} back" in caplog.text
    remaining = forgetting_of_probes(probe, trainer)
    expected = probe.history[crossing - 1]["probes/mean_rise"]
    assert remaining == pytest.approx(expected, abs=1e-6)
    assert probe.prediction.mean.value <= limit
    with pytest.raises(LetheError, match="keep_below_limit needs a limit"):
        ForgettingProbe(predictor, keep_below_limit=True)


def test_predictions_come_out_by_example_and_draw_what_is_replayed(predictor, tokenizer, tmp_path):
    trainer = make_trainer(tiny.model("llama", scale=1), tmp_path, tokenizer)
    probe = ForgettingProbe.attach(trainer, predictor)
    with pytest.raises(LetheError, match="nothing was predicted yet"):
        probe.predictions()
    trainer.train()
    records = probe.predictions()
    values = [record["forgetting"] for record in records]
    assert values == sorted(values, reverse=True)
    assert {record["example_id"] for record in records} == set(predictor.example_ids)
    assert sum(record["probe"] for record in records) == 8
    write_upstream(tmp_path / "pool.parquet", UPSTREAM)
    tables = []
    for name in ("a", "b"):
        path = probe.draw_replay(
            tmp_path / "pool.parquet", tmp_path / f"{name}.parquet", examples=10
        )
        tables.append(list(read_upstream(path)))
    assert tables[0] == tables[1]
    assert len({example.example_id for example in tables[0]}) == 10
    assert all(example.split == "replayable" for example in tables[0])
    narrow = probe.draw_replay(
        tmp_path / "pool.parquet", tmp_path / "top.parquet", examples=5, temperature=1e-6
    )
    heldout = {example.example_id for example in UPSTREAM if example.split == "heldout"}
    replayable = [r["example_id"] for r in records if r["example_id"] not in heldout]
    assert {example.example_id for example in read_upstream(narrow)} == set(replayable[:5])
    with pytest.raises(LetheError, match="it has 30 replayable ones"):
        probe.draw_replay(tmp_path / "pool.parquet", tmp_path / "c.parquet", examples=31)
    for wrong in (0, -0.1, float("nan")):
        with pytest.raises(LetheError, match=f"temperature is {wrong}, but must be above 0"):
            probe.draw_replay(
                tmp_path / "pool.parquet", tmp_path / "c.parquet", examples=3, temperature=wrong
            )
    other = [replace(example, example=tiny.upstream(1)[0].example) for example in UPSTREAM]
    write_upstream(tmp_path / "other.parquet", other)
    with pytest.raises(LetheError, match="has another text than in the predictor"):
        probe.draw_replay(tmp_path / "other.parquet", tmp_path / "c.parquet", examples=3)


def test_a_predictor_keeps_its_conversations_and_the_probe_reads_all_their_turns(tmp_path):
    reader = chats.tokenizer()
    upstream = [example for example in chats.pool(60) if example.domain == "talks"]
    made = Predictor(
        train=np.random.default_rng(0).normal(size=(6, 20)).astype(np.float32),
        example_ids=[example.example_id for example in upstream],
        domains=np.array([example.domain for example in upstream]),
        index=np.arange(3),
        probes=[example.example for example in upstream[:3]],
        max_tokens=400,
        include_eos=True,
    )
    made.save(tmp_path / "p.npz")
    assert Predictor.load(tmp_path / "p.npz").probes == made.probes
    probe = ForgettingProbe(tmp_path / "p.npz")
    tokens = probe._tokenise_probes(reader)
    assert tokens == tokenise(reader, made.probes, 400, truncation="right").examples
    decoded = reader.decode(tokens[0].ids)
    assert decoded.startswith("<|im_start|>system\nTell a tale.<|im_end|>")


def test_a_mixture_of_new_data_is_drawn_by_the_prediction(predictor, tokenizer, tmp_path, caplog):
    trainer = make_trainer(tiny.model("llama", scale=1), tmp_path, tokenizer)
    probe = ForgettingProbe.attach(trainer, predictor)
    trainer.train()
    write_upstream(tmp_path / "pool.parquet", UPSTREAM)
    lines = [json.dumps({"prompt": f"say {i}", "completion": f"word {i}"}) for i in range(20)]
    lines.append(json.dumps({"prompt": "say nothing", "completion": " "}))
    (tmp_path / "new.jsonl").write_text("\n".join(lines))
    counts = probe.mix(
        tmp_path / "new.jsonl", tmp_path / "pool.parquet", tmp_path / "mixed", ratio=0.5
    )
    assert counts["train_with_replay.jsonl"] == 30
    assert "new.jsonl: 21 chats read; 1 without an answer (left out)" in caplog.text
    predicted = {r["example_id"]: r["forgetting"] for r in probe.predictions()}
    heldout = {example.example_id for example in UPSTREAM if example.split == "heldout"}
    (table,) = (tmp_path / "mixed").glob("replay.text.jsonl")
    records = [json.loads(line) for line in table.read_text().splitlines()]
    assert len(records) == 10
    for record in records:
        assert record["example_id"] not in heldout
        assert record["predicted_forgetting"] == pytest.approx(predicted[record["example_id"]])
    with pytest.raises(LetheError, match="is not empty"):
        probe.mix(tmp_path / "new.jsonl", tmp_path / "pool.parquet", tmp_path / "mixed")


@pytest.fixture
def trained_probe(predictor, tokenizer, tmp_path):
    """A probe that has predicted, and its pool."""
    write_upstream(tmp_path / "pool.parquet", UPSTREAM)
    trainer = make_trainer(tiny.model("llama", scale=1), tmp_path / "t", tokenizer, max_steps=1)
    probe = ForgettingProbe.attach(trainer, predictor)
    trainer.train()
    return probe, tmp_path / "pool.parquet"


def write_chats(path, answers):
    """Pairs, and after them one without an answer."""
    lines = []
    for number, answer in enumerate([*answers, " "]):
        lines.append(json.dumps({"prompt": f"say {number}", "completion": answer}) + "\n")
    path.write_text("".join(lines))
    return path


def test_a_mixture_says_what_was_read_and_left_out(trained_probe, tmp_path, caplog):
    probe, pool = trained_probe
    upstream = [*UPSTREAM]
    new = write_chats(tmp_path / "new.jsonl", ["a word", "two words"])
    heldout = replace(upstream[1], example=Example("say 0", "a word"), split="heldout")
    upstream[1] = heldout
    write_upstream(pool, upstream)
    probe.mix(new, pool, tmp_path / "mixed", ratio=1.0)
    assert "new.jsonl: 3 chats read; 1 without an answer (left out)" in caplog.text
    count = sum(example.split == "heldout" for example in upstream)
    assert f"pool.parquet: {count} held out, not replayed" in caplog.text
    assert "1 of the new chats are held-out examples of" in caplog.text
    assert "repeated" not in caplog.text
    probe.mix(new, pool, tmp_path / "many", ratio=50.0)
    assert "the 100 replayed rows hold 29 different examples, so some are repeated" in caplog.text


@pytest.mark.parametrize("ratio", [-1, 0, float("nan"), 101])
def test_an_impossible_ratio_is_refused_before_anything_is_written(trained_probe, tmp_path, ratio):
    probe, pool = trained_probe
    new = write_chats(tmp_path / "new.jsonl", ["a word"])
    with pytest.raises(LetheError, match=f"ratio is {ratio}; give .* above 0 and at most 100"):
        probe.mix(new, pool, tmp_path / "mixed", ratio=ratio)
    assert not (tmp_path / "mixed").exists()


def test_drawn_examples_replace_no_file_with_something_else(trained_probe, tmp_path):
    probe, pool = trained_probe
    output = probe.draw_replay(pool, tmp_path / "replay.parquet", examples=4)
    drawn = output.read_bytes()
    assert probe.draw_replay(pool, output, examples=4) == output
    with pytest.raises(LetheError, match=r"replay.parquet: exists and does not hold the 5 exam"):
        probe.draw_replay(pool, output, examples=5)
    assert output.read_bytes() == drawn
    (tmp_path / "base.parquet").write_text("losses")
    with pytest.raises(LetheError, match=r"base.parquet: exists .* give another output"):
        probe.draw_replay(pool, tmp_path / "base.parquet", examples=4)
    assert (tmp_path / "base.parquet").read_text() == "losses"


def test_a_pool_without_any_probe_is_refused(trained_probe, tmp_path):
    probe, _ = trained_probe
    names = {probe.predictor.example_ids[i] for i in probe.predictor.index}
    others = [example for example in UPSTREAM if example.example_id not in names]
    write_upstream(tmp_path / "others.parquet", others)
    with pytest.raises(LetheError, match="holds none of the predictor's 8 probes"):
        probe.draw_replay(tmp_path / "others.parquet", tmp_path / "r.parquet", examples=3)
    one = [example for example in UPSTREAM if example.example_id in names][:1]
    write_upstream(tmp_path / "part.parquet", [*others, *one])
    probe.draw_replay(tmp_path / "part.parquet", tmp_path / "r.parquet", examples=3)
