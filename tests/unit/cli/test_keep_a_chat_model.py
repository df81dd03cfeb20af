"""The commands and the script of docs/tutorials/keep-a-chat-model.md, with a tiny model."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import transformers
from helpers import tiny

from lethe.cli.application import main
from lethe.data.examples import write_upstream
from lethe.matrix import rows

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/tutorials/keep-a-chat-model.md").read_text("utf-8")
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}\n{% endgeneration %}{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


def commands(verb):
    """The page's commands of one verb, with the model's folder in place of MODEL."""
    lines = "".join(blocks("sh")).splitlines()
    found = [line for line in lines if line.startswith(f"lethe {verb}")]
    assert found, verb
    return [shlex.split(line.replace("MODEL", "base"))[1:] for line in found]


def run(arguments):
    assert main(arguments) == 0, arguments


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = [path.read_text("utf-8") for path in (ROOT / "src/lethe/cli/own_data").rglob("*.jsonl")]
    from lethe.engine import models

    tokenizer = models.train_tokenizer(texts, 600)
    tokenizer.chat_template = TEMPLATE
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=600,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=1024,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(3)
    model.save_pretrained("base")
    tokenizer.save_pretrained("base")
    return tmp_path


def test_every_command_of_the_page_runs_with_a_tiny_model(folder, capsys):
    pytest.importorskip("trl")
    pytest.importorskip("peft")
    for verb in ("--version", "init", "pool"):
        for arguments in commands(verb):
            run(arguments)
    base, after = commands("score")
    run(base)
    (script,) = blocks("python")
    script = script.replace("MODEL", "base").replace("max_steps=40", "max_steps=3")
    script = script.replace("max_steps=3", "max_steps=3, logging_steps=1")
    exec(compile(script, "keep-a-chat-model.md", "exec"), {"__name__": "__main__"})
    assert "replay/kl" in capsys.readouterr().out
    run(after)
    (comparison,) = commands("compare")
    run(comparison)
    assert "held-out examples" in capsys.readouterr().out
    assert (folder / "lost.html").exists()
    row = rows.read_row(folder / "lost.parquet")
    assert np.isfinite(row.forgetting).all()
    for arguments in commands("mix"):
        run(arguments)
    for name in ("mixed-random", "mixed-by-loss"):
        assert (folder / name / "train_with_replay.jsonl").exists()


def test_the_commands_of_lethe_learn_have_options_that_exist(folder, monkeypatch):
    """The verb itself runs in tests/workflow/test_learn_run.py, because it takes minutes."""
    from lethe.cli import learn_predictor

    seen = []
    monkeypatch.setattr(
        learn_predictor, "_write_experiment", lambda model, *_rest, **_named: seen.append(model)
    )
    write_upstream(folder / "pool.parquet", tiny.upstream(40))
    for arguments in commands("learn"):
        with pytest.raises(TypeError):
            main(arguments)
    assert seen == ["base", "base"]


def test_the_computed_table_is_right():
    table = re.findall(r"^\| ([\d.]+) billion \| (\d+) GB \| .*? \| (\d+) GB \|", PAGE, re.M)
    assert len(table) == 4
    for billions, weights, full in table:
        assert int(weights) == 2 * float(billions)
        assert int(full) == 12 * float(billions)


def test_the_computed_table_with_activations_is_right():
    pattern = (
        r"^\| ([\d.]+) billion \| (\d+) × ([\d,]+), ([\d,]+) \| ([\d.]+) GB "
        r"\| ([\d.]+) GB \| (yes|no) \| (yes|no) \| ([\d.]+) GB \| (yes|no) \| (yes|no) \|$"
    )
    table = re.findall(pattern, PAGE, re.M)
    assert len(table) == 4
    for billions, layers, width, words, activations, lora, *fits_lora, full, small, large in table:
        sizes = [int(text.replace(",", "")) for text in (layers, width, words)]
        expected = _activations(*sizes)
        assert float(activations) == round(expected, 1)
        weights = float(billions)
        assert float(lora) == round(2.16 * weights + expected, 1)
        assert float(full) == round(14 * weights + expected, 1)
        assert [small, large] == [_fits(full, 24), _fits(full, 80)]
        assert fits_lora == [_fits(lora, 24), _fits(lora, 80)]
    halved = 2.16 * 8 + _activations(32, 4096, 128256) / 2
    assert f"{halved:.1f} GB" in PAGE


def _activations(layers, width, words):
    """Gigabytes of 4 chats of 1,024 tokens with gradient checkpointing."""
    return 4 * 1024 * (2 * layers * width + 34 * width + 10 * words) / 1e9


def _fits(gigabytes, card):
    return "yes" if float(gigabytes) <= card else "no"
