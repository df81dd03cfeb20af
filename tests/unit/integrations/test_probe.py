import copy
import json

import numpy as np
import pytest
import torch
import transformers
from helpers import tiny

from lethe.completion.predictor import Predictor
from lethe.config.model_settings import LoRA
from lethe.data.examples import write_upstream
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
        train.astype(np.float32),
        [example.example_id for example in UPSTREAM],
        np.array([example.domain for example in UPSTREAM]),
        np.arange(0, 40, 5),
        [UPSTREAM[i].example for i in range(0, 40, 5)],
        max_tokens=24,
    )


def padded(chosen):
    length = max(len(example.ids) for example in chosen)
    ids = torch.zeros(len(chosen), length, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, example in enumerate(chosen):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        labels[row, example.start : len(example.ids)] = ids[row, example.start : len(example.ids)]
    return {"input_ids": ids, "labels": labels}


def trainer(model, folder, tokenizer, **changes):
    arguments = {"learning_rate": 3e-2, "num_train_epochs": 1, "eval_strategy": "steps"}
    arguments |= {"eval_steps": 2, "save_strategy": "no", "report_to": [], "use_cpu": True}
    arguments |= {"disable_tqdm": True, "remove_unused_columns": False, "logging_steps": 100}
    return transformers.Trainer(
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
    made = trainer(model, tmp_path, tokenizer)
    probe = ForgettingProbe.attach(made, predictor)
    made.train()
    tokens = tokenise(tokenizer, predictor.probes, 24).examples
    values = score(model, tokens, 2048).losses - score(base, tokens, 2048).losses
    wanted = predictor.predict(values)
    logged = [line for line in made.state.log_history if "forgetting/mean" in line]
    assert [line["step"] for line in logged] == [2, 4, 6]
    assert logged[-1]["forgetting/mean"] == pytest.approx(wanted.forgetting.mean(), abs=1e-6)
    assert logged[-1]["forgetting/low"] < logged[-1]["forgetting/mean"]
    of_a = wanted.forgetting[predictor.domains == "a"].mean()
    assert logged[-1]["forgetting/a"] == pytest.approx(of_a, abs=1e-6)
    assert abs(np.mean(values)) > 1e-3
    assert probe.history[-1]["step"] == 6


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, dropout=0.5)])
def test_the_training_is_the_same_with_and_without_it(predictor, tokenizer, tmp_path, lora):
    def made():
        model = tiny.model("llama", scale=1)
        return model if lora is None else models.add_lora(model, lora, 0)

    plain, watched = made(), made()
    trainer(plain, tmp_path / "a", tokenizer).train()
    second = trainer(watched, tmp_path / "b", tokenizer)
    ForgettingProbe.attach(second, predictor, every=1)
    second.train()
    for ours, wanted in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, wanted)


def test_modules_that_a_user_holds_in_evaluation_stay_there(predictor, tokenizer, tmp_path):
    model = tiny.model("llama", scale=1)
    probe = ForgettingProbe(predictor, tokenizer=tokenizer)
    state = transformers.TrainerState()
    model.train()
    held = model.get_input_embeddings()
    held.eval()
    probe.on_train_begin(None, state, None, model=model)
    assert not held.training and model.training


def test_it_stops_the_training_at_its_limit_and_names_domains(
    predictor, tokenizer, tmp_path, capsys
):
    model = tiny.model("llama", scale=1)
    made = trainer(model, tmp_path, tokenizer)
    probe = ForgettingProbe.attach(made, predictor, every=1, limit=-100.0, risk=-100.0)
    made.train()
    assert made.state.global_step == 1
    assert sorted(probe.at_risk) == ["a", "b"]
    said = capsys.readouterr().err
    assert "stopped at step 1" in said and "at risk: " in said


def test_a_resumed_training_needs_the_losses_of_the_true_base(predictor, tokenizer):
    model = tiny.model("llama", scale=1)
    state = transformers.TrainerState(global_step=5)
    with pytest.raises(LetheError, match="goes on from step 5"):
        ForgettingProbe(predictor, tokenizer=tokenizer).on_train_begin(
            None, state, None, model=model
        )
    given = np.zeros(8)
    probe = ForgettingProbe(predictor, tokenizer=tokenizer, base_losses=given)
    probe.on_train_begin(None, state, None, model=model)
    assert probe.base_losses is given


def test_it_works_in_trls_trainer(predictor, tokenizer, tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed; pip install trl")
    datasets = pytest.importorskip("datasets")
    model = tiny.model("llama", scale=1)
    texts = datasets.Dataset.from_list([{"text": e.example.text} for e in UPSTREAM])
    made = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(
            output_dir=str(tmp_path), report_to=[], use_cpu=True, max_steps=3, save_strategy="no"
        ),
        train_dataset=texts,
        processing_class=tokenizer,
    )
    probe = ForgettingProbe.attach(made, predictor, every=1)
    made.train()
    assert [line["step"] for line in probe.history] == [1, 2, 3]


def test_a_saved_predictor_predicts_the_same_and_holds_no_pickle(predictor, tmp_path):
    path = tmp_path / "predictor.npz"
    predictor.save(path)
    again = Predictor.load(path)
    values = np.linspace(-0.1, 0.3, 8)
    for ours, wanted in zip(
        vars(again.predict(values)).values(),
        vars(predictor.predict(values)).values(),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, wanted)
    assert again.probes == predictor.probes
    with np.load(path, allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays.files)


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
    forgetting_matrix.write(
        folder / "Z.parquet", forgetting_matrix.Matrix(values, [f"t{i}" for i in range(6)], ids)
    )
    write_upstream(tmp_path / "results/e/upstream.parquet", UPSTREAM)
    settings = {"scoring": {"max_tokens": 24, "include_eos": False}}
    losses = np.zeros(40, dtype=np.float32)
    row = rows.Row(ids, losses, losses, np.ones(40, dtype=np.int32), settings)
    rows.write(folder / "base.parquet", row)
    found = Predictor.from_results(folder, probes=5)
    assert len(found.index) == len(found.probes) == 5
    assert found.example_ids == ids[:7] + ids[8:] and found.train.shape == (6, 39)
    chosen = [found.example_ids[i] for i in found.index]
    assert found.probes == [UPSTREAM[ids.index(name)].example for name in chosen]
    assert ids[8] not in chosen
    assert json.dumps(found.max_tokens) == "24"
    write_upstream(tmp_path / "results/e/upstream.parquet", UPSTREAM[:30])
    with pytest.raises(LetheError, match="10 examples of Z"):
        Predictor.from_results(folder, probes=5)
    write_upstream(tmp_path / "results/e/upstream.parquet", UPSTREAM)
    settings["scoring"]["exact_match"] = {"max_new_tokens": 8}
    rows.write(folder / "base.parquet", row)
    with pytest.raises(LetheError, match="needs an experiment that measures losses"):
        Predictor.from_results(folder, probes=5)
