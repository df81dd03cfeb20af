"""Whatever a folder holds, loading it ends in a model or in one line that names it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from helpers import tiny
from helpers.experiment import ROOT

from lethe.engine import models
from lethe.errors import LetheError, one_line
from lethe.similarity.encoder import load_encoder

DEEP = "[" * 100_000
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4242\n"


def settings(**changes):
    """A change of a JSON file by these keys."""

    def change(text):
        return json.dumps(json.loads(text) | changes)

    return change


DAMAGES = [
    ("config.json", lambda text: text[: len(text) // 2]),
    ("config.json", lambda text: "[]"),
    ("config.json", lambda text: "{}"),
    ("config.json", lambda text: "null"),
    ("config.json", lambda text: DEEP),
    ("config.json", lambda text: ""),
    ("config.json", lambda text: POINTER),
    ("config.json", settings(model_type="no-such-kind")),
    ("config.json", settings(model_type=7)),
    ("config.json", settings(hidden_size="wide")),
    ("config.json", settings(hidden_size=-4)),
    ("config.json", settings(num_attention_heads=0)),
    ("config.json", settings(num_attention_heads=3)),
    ("config.json", settings(hidden_act="no-such-function")),
    ("config.json", settings(rope_parameters={"rope_type": "no-such-kind"})),
    ("config.json", settings(dtype="no-such-type")),
    ("config.json", settings(quantization_config={"quant_method": "no-such-method"})),
    ("config.json", settings(attn_implementation="no-such-kind")),
    ("config.json", settings(attn_implementation="someone/kernel")),
    ("config.json", settings(vocab_size=7)),
    ("tokenizer.json", lambda text: text[: len(text) // 2]),
    ("tokenizer.json", lambda text: "{}"),
    ("tokenizer.json", lambda text: "[]"),
    ("tokenizer.json", lambda text: DEEP),
    ("tokenizer.json", lambda text: ""),
    ("tokenizer.json", lambda text: POINTER),
    ("tokenizer.json", settings(model={"type": "no-such-kind"})),
    ("tokenizer_config.json", lambda text: "[]"),
    ("tokenizer_config.json", lambda text: DEEP),
    ("tokenizer_config.json", settings(tokenizer_class="NoSuchClass")),
    ("tokenizer_config.json", settings(tokenizer_class=7)),
    ("tokenizer_config.json", settings(eos_token=["<a>"])),
    ("tokenizer_config.json", settings(added_tokens_decoder={"a": 1})),
    ("generation_config.json", lambda text: "[]"),
    ("generation_config.json", settings(temperature="warm")),
    ("model.safetensors", lambda text: ""),
    ("model.safetensors", lambda text: "12345678"),
    ("model.safetensors", lambda text: POINTER),
]


@pytest.fixture
def folder(tmp_path, tokenizer):
    tiny.model("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def names(error, folder):
    message = str(error)
    return str(folder) in message and "\n" not in message and "Traceback" not in message


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_damaged_files_of_a_model_are_named(folder, name, damage):
    path = folder / name
    text = path.read_text("utf-8") if path.suffix == ".json" else ""
    path.write_text(damage(text), "utf-8")
    for load in (
        lambda: models.load({"path": str(folder)}),
        lambda: models.chat_template(str(folder)),
        lambda: load_encoder(str(folder)),
    ):
        try:
            load()
        except LetheError as error:
            assert names(error, folder), str(error)


@pytest.mark.parametrize(
    ("name", "damage"), [damage for damage in DAMAGES if damage[0] == "model.safetensors"]
)
def test_damaged_weights_are_refused(folder, name, damage):
    (folder / name).write_text(damage(""), "utf-8")
    with pytest.raises(LetheError) as caught:
        models.load({"path": str(folder)})
    assert names(caught.value, folder)


def test_a_kernel_that_config_json_names_is_never_fetched(folder):
    path = folder / "config.json"
    for change in (
        {"attn_implementation": "someone/kernel"},
        {"text": {"a_implementation": "b/c"}},
    ):
        path.write_text(settings(**change)(path.read_text()))
        with pytest.raises(LetheError, match=r"_implementation to '\w+/\w+', which is code"):
            models.load({"path": str(folder)})


def with_code(folder):
    """Adds code to a folder, which leaves a mark if it is run; returns the mark."""
    mark = folder / "mark"
    code = (
        f"open({str(mark)!r}, 'w')\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel\n"
        "from transformers import PreTrainedTokenizerFast\n"
        "class Tokenizer(PreTrainedTokenizerFast): pass\n"
        "class Config(LlamaConfig): model_type = 'own-kind'\n"
        "class Causal(LlamaForCausalLM): config_class = Config\n"
        "class Body(LlamaModel): config_class = Config\n"
    )
    (folder / "own.py").write_text(code)
    classes = {
        "AutoConfig": "own.Config",
        "AutoModelForCausalLM": "own.Causal",
        "AutoModel": "own.Body",
    }
    tokenizer = {"AutoTokenizer": [None, "own.Tokenizer"]}
    changes = {
        "config.json": settings(model_type="own-kind", auto_map=classes),
        "tokenizer_config.json": settings(auto_map=tokenizer, tokenizer_class="Tokenizer"),
    }
    for name, change in changes.items():
        path = folder / name
        path.write_text(change(path.read_text()))
    return mark


LOADS = """
import sys
from lethe.engine import models
from lethe.errors import LetheError
from lethe.similarity.encoder import load_encoder
folder = sys.argv[1]
for load in (lambda: models.load({"path": folder}), lambda: models.chat_template(folder),
             lambda: load_encoder(folder)):
    try:
        load()
    except LetheError as error:
        print(error)
"""


def test_code_is_neither_run_nor_asked_about(folder):
    mark = with_code(folder)
    done = subprocess.run(
        [sys.executable, "-c", LOADS, str(folder)],
        input="y\n" * 20,
        cwd=ROOT / "src",
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stdout + done.stderr
    for line in lines:
        assert str(folder) in line and "brings Python code of its own, which is not run" in line
    assert "[y/N]" not in done.stdout + done.stderr
    assert not mark.exists()


def test_code_runs_where_the_experiment_says_so(folder, monkeypatch, tmp_path_factory):
    monkeypatch.setattr(
        transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("code"))
    )
    mark = with_code(folder)
    model, _ = models.load({"path": str(folder), "trust_remote_code": True})
    assert mark.exists()
    assert type(model).__name__ == "Causal"


def test_there_is_one_loader():
    """Only the loader calls transformers, so that no other way in can run code."""
    callers = []
    for path in sorted((ROOT / "src/lethe").rglob("*.py")):
        if ".from_pretrained(" in path.read_text("utf-8"):
            callers.append(path.name)
    for path in sorted((ROOT / "workflow_scripts").glob("*.py")):
        assert ".from_pretrained(" not in path.read_text("utf-8")
    assert callers == ["pretrained.py"]


def test_a_template_file_that_is_no_text_is_named(tmp_path):
    path = Path(tmp_path, "a.jinja")
    path.write_bytes(b"\xff\xfe{{")
    with pytest.raises(LetheError, match=r"chat_template .*a\.jinja: cannot be read.*UTF-8"):
        models.chat_template(str(path))


def test_messages_of_other_libraries_become_one_bounded_line():
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line(OSError("long " * 1000))) < 500
