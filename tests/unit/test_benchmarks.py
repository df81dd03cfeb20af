"""The tokens and seconds that the benchmarks count."""

import argparse
import importlib
import sys
from pathlib import Path

import pytest
from helpers import tiny

LENGTHS = (4, 30, 6, 22, 9, 40, 5, 18, 12, 7, 33, 26)
BATCH = 2


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    for name in ("training", "scoring"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("training")
    for name in ("training", "scoring"):
        sys.modules.pop(name, None)


def ways(benchmark, examples):
    steps = len(examples) // BATCH
    yield "padded", benchmark.by_trainer(tiny.model("llama"), examples, 48, BATCH, steps)
    yield "grouped", benchmark.by_trainer(tiny.model("llama"), examples, None, BATCH, steps)
    yield "lethe", benchmark.by_lethe(tiny.model("llama"), examples, BATCH, 1)


def test_every_way_of_training_uses_every_example_once_and_names_its_batches(benchmark):
    examples = tiny.tokens(*((length, length // 2) for length in LENGTHS))
    for way, (batches, ends) in ways(benchmark, examples):
        assert len(batches) == len(ends) == len(examples) // BATCH, way
        trained = []
        for batch in batches:
            trained += [id(example) for example in batch]
        assert sorted(trained) == sorted(map(id, examples)), way


def test_batches_of_like_length_begin_with_the_longest_example(benchmark):
    examples = tiny.tokens(*((length, length // 2) for length in LENGTHS))
    batches, ends = dict(ways(benchmark, examples))["grouped"]
    assert len(batches[0][0].ids) == max(LENGTHS)
    # The tokens of the timed steps depend on the order, so they are counted, not averaged.
    untimed = sum(len(example.ids) for example in [*batches[0], *batches[1]])
    assert benchmark.timed(batches, ends)["tokens"] == sum(LENGTHS) - untimed


def test_tokens_and_seconds_are_those_of_the_steps_after_the_first_two(benchmark):
    shapes = [(40, 10), (40, 10), (6, 4), (8, 3), (5, 5)]
    batches = [[example] for example in tiny.tokens(*shapes)]
    result = benchmark.timed(batches, [1.0, 2.0, 2.5, 4.0, 4.5])
    assert result == {"steps": 3, "tokens": 19, "answer_tokens": 7, "seconds": 2.5}


def test_too_few_steps_to_time_end_the_benchmark(benchmark):
    batches = [[example] for example in tiny.tokens((6, 2), (6, 2))]
    with pytest.raises(SystemExit, match="2 steps"):
        benchmark.timed(batches, [1.0, 2.0])


@pytest.mark.parametrize("dose", ["token", "step"])
def test_ways_of_replay_share_the_new_examples_and_all_but_two_replay(monkeypatch, dose):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    modules = ("replay", "training", "scoring")
    for name in modules:
        monkeypatch.delitem(sys.modules, name, raising=False)
    benchmark = importlib.import_module("replay")
    for name in modules:
        sys.modules.pop(name, None)
    settings = argparse.Namespace(batch=4, micro_batch=2, lr=1e-3, dose=dose, top_k=20)
    new = tiny.tokens(*[(12, 5)] * 16)
    upstream = tiny.tokens((10, 1), (14, 1), seed=1)
    base = tiny.model("llama")
    records = {}
    for way in benchmark.WAYS:
        run = benchmark.Run(way, base, new, upstream, settings)
        for number in range(len(run.steps) + 1):
            run.take(number)
        taken = [example for step in run.steps for example in step.new]
        assert sum(example.start == 5 for example in taken) == len(new), way
        records[way] = run.record(new)
        assert records[way]["steps"] == len(run.steps)
    replayed = {way: record["replayed_tokens"] for way, record in records.items()}
    assert replayed == {"plain": 0, "text": 0, "prompt": 0, "kl": 24, "stored": 24}
    divergences = benchmark.divergences(tiny.model("llama", seed=1), base, upstream)
    shares = [divergences[str(k)] for k in benchmark.TOP_K]
    assert shares == sorted(shares) and shares[-1] <= divergences["all"] + 1e-5


def test_every_way_of_rehearsal_is_timed_against_the_trainer_alone(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.delitem(sys.modules, "rehearsal", raising=False)
    benchmark = importlib.import_module("rehearsal")
    sys.modules.pop("rehearsal", None)
    options = ["--steps", "2", "--rounds", "1", "--batch", "2", "--prompt", "12", "--answer", "8"]
    settings = benchmark.parser().parse_args(options)
    records = benchmark.measure(tiny.model("llama"), tiny.tokenizer(), settings)
    assert list(records) == list(benchmark.WAYS)
    assert records["plain"]["ratio"] == 1
    assert all(record["seconds_per_step"] > 0 for record in records.values())
