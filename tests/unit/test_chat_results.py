"""The tables of docs/chat_results.py, and the runs of benchmarks/keep_chat_model.py."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import chat_results

    return chat_results


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import keep_chat_model

    return keep_chat_model


def write_tables(folder, rises):
    """Tables of LoRA runs in which every text rises by the arm's value, and a spread by seed."""
    lines = []
    runs = []
    for arm, rise in rises.items():
        for seed in (0, 1):
            facts = {"method": "lora", "arm": arm, "seed": seed, "steps": 10}
            seconds = 20.0 if arm == "none" else 25.0
            runs.append(facts | {"train_processor_seconds": seconds, "peak_gigabytes": 3.0})
            for number in range(12):
                split = "new" if number >= 8 else "heldout"
                after = 1 + rise + 0.01 * seed
                lines.append(
                    {
                        "method": "lora",
                        "arm": arm,
                        "seed": seed,
                        "example_id": f"{'new' if split == 'new' else 'code'}-{number:05d}",
                        "split": split,
                        "loss_before": 1.0,
                        "loss_after": after,
                        "kl": abs(rise) / 2,
                    }
                )
    pd.DataFrame(lines).to_parquet(folder / "texts.parquet")
    pd.DataFrame(runs).to_parquet(folder / "runs.parquet")


def test_the_tables_have_the_means_intervals_and_ratios(results, tmp_path, capsys):
    write_tables(tmp_path, {"none": 0.4, "mix": 0.2, "rehearsal": 0.05})
    page = tmp_path / "page.md"
    page.write_text(f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n")
    results.main(tmp_path, page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    # The seeds' values are .40 and .41.
    assert "| no replay | 2 | +0.405 [+0.400, +0.410] |" in text
    assert "| Rehearsal | 0.27 [0.25, 0.29] | 0.25 [0.25, 0.25] | -0.150" in text
    assert "| LoRA | Rehearsal | 10 | 2.50 | 1.25 | 25 | 1.25 | 3.0 GB | +0.0 GB |" in text
    assert "full fine-tuning" not in text
    assert capsys.readouterr().out.strip() in text
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="has no lines"):
        results.main(tmp_path, page)


def test_an_interval_covers_texts_and_seeds(results):
    rng = np.random.default_rng(0)
    seeds = np.array([-1.0, 0.0, 1.0])
    values = rng.normal(size=(60, 1)) * 0.1 + seeds
    mean, low, high = results.interval(values)
    assert low < mean < high
    # Three seeds that differ by one nat: the interval is far wider than that of 60 texts.
    assert high - low > 1


def test_arms_come_after_the_runs_that_they_need(benchmark, tmp_path):
    runs = benchmark.runs_of(tmp_path)
    assert len(runs) == len(benchmark.ARMS) * len(benchmark.METHODS) * len(benchmark.SEEDS)
    position = {run.folder: number for number, run in enumerate(runs)}
    assert len(position) == len(runs)
    for run in runs:
        if run.arm == "mix_lost":
            assert position[run.sibling("none").folder] < position[run.folder]
        if run.arm == "rehearsal":
            assert position[run.sibling("mix").folder] < position[run.folder]


def test_the_marked_template_writes_a_chat_as_the_model_reads_it(benchmark):
    """And the loss is on every answer with the end of its turn."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = benchmark.TEMPLATE
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    beginning = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n"
    )
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    expected = beginning
    for turn in turns:
        expected += f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n"
    assert text == expected
    encoded = tokenizer.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    marked = []
    for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True):
        if mask:
            marked.append(token)
    assert tokenizer.decode(marked) == "b<|im_end|>d<|im_end|>"
