"""A model that does not load whole is refused with the tensors and the likely cause."""

import json

import numpy as np
import pytest
import torch
import transformers
from helpers import tiny
from safetensors.torch import load_file, save_file

from lethe.config.model_settings import LoRA, Scoring
from lethe.engine import models
from lethe.engine.loading_report import check_finite, positions_of
from lethe.engine.pretrained import Pretrained
from lethe.engine.reader import Reader
from lethe.engine.scoring import score
from lethe.errors import LetheError
from lethe.measure.forgetting import base_losses


def untied(**changes):
    """A tiny Llama whose output layer has weights of its own."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "vocab_size": tiny.VOCABULARY, "pad_token_id": None}
    config = transformers.AutoConfig.for_model("llama", **sizes | changes)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.fixture
def saved(tmp_path, tokenizer):
    """Saves a model with the tokenizer; its folder."""

    def save(model):
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return tmp_path

    return save


def refusal(folder) -> str:
    with pytest.raises(LetheError) as caught:
        models.load({"path": str(folder)})
    assert f"model {folder}: its files do not hold this language model" in str(caught.value)
    return str(caught.value)


def rename(folder, change):
    """Saves the folder's tensors under other names."""
    path = folder / "model.safetensors"
    tensors = {change(name): tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def test_whole_models_load_with_tied_or_untied_weights(saved):
    models.load({"path": str(saved(untied()))})
    models.load({"path": str(saved(untied(tie_word_embeddings=True)))})


def test_a_model_without_its_output_layer_is_refused(saved):
    message = refusal(saved(untied().model))
    assert "without lm_head.weight" in message and "AutoModelForCausalLM" in message


def test_a_classifier_is_refused(saved):
    config = untied().config
    classifier = transformers.AutoModelForSequenceClassification.from_config(config)
    message = refusal(saved(classifier))
    assert "score.weight" in message and "classifier" in message


@pytest.mark.parametrize(
    ("prefix", "cause"), [("_orig_mod.", "torch.compile"), ("module.", "DataParallel")]
)
def test_tensors_with_the_prefix_of_a_wrapper_are_refused(saved, prefix, cause):
    folder = saved(untied())
    rename(folder, lambda name: prefix + name)
    message = refusal(folder)
    assert cause in message and prefix in message and "more" in message


def test_any_missing_tensor_is_refused_and_named(saved):
    folder = saved(untied())
    missing = "model.layers.1.mlp.up_proj.weight"
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors[missing]
    save_file(tensors, path, metadata={"format": "pt"})
    assert f"without {missing}" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("num_hidden_layers", 1, "model.layers.1."),
        ("intermediate_size", 24, "(16, 32) instead of (16, 24)"),
    ],
)
def test_settings_of_another_size_are_refused(saved, key, value, part):
    folder = saved(untied())
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(config))
    message = refusal(folder)
    assert part in message and "config.json" in message


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(saved, tokenizer):
    folder = saved(untied(vocab_size=tiny.VOCABULARY - 40))
    with pytest.raises(LetheError, match=r"has 300 tokens.*embeddings for 260 only.*resize"):
        models.load({"path": str(folder)})


def test_an_adapter_in_a_model_is_refused(saved):
    adapted = models.add_lora(untied(), LoRA(rank=2), seed=0)
    folder = saved(untied())
    adapted.save_pretrained(folder)
    with pytest.raises(LetheError, match="holds an adapter"):
        models.load({"path": str(folder)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_at_the_base(saved, value):
    model = untied()
    model.model.layers[1].mlp.up_proj.weight.data[3, 2] = value
    reader = Reader.load({"path": str(saved(model))}, Scoring(max_tokens=24))
    name = r"1 tensor.*model\.layers\.1\.mlp\.up_proj\.weight"
    with pytest.raises(LetheError, match=name):
        base_losses(reader, tiny.upstream(4), {})
    check_finite(untied(), "m")


def test_base_losses_that_are_all_nan_are_refused(saved, monkeypatch):
    model = untied()
    model.model.norm.weight.data[:] = 3e38
    reader = Reader.load({"path": str(saved(model))}, Scoring(max_tokens=24))
    with pytest.raises(LetheError, match="all losses of the base model are NaN"):
        base_losses(reader, tiny.upstream(4), {})


@pytest.mark.parametrize("change", [{"output_router_logits": True}, {"return_dict": False}])
def test_a_mixture_of_experts_is_scored_whatever_it_returns(saved, change):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "vocab_size": tiny.VOCABULARY, "num_local_experts": 2}
    sizes |= {"num_key_value_heads": 2, "pad_token_id": None}
    config = transformers.AutoConfig.for_model("mixtral", **sizes)
    torch.manual_seed(0)
    folder = saved(transformers.AutoModelForCausalLM.from_config(config))
    examples = tiny.tokens((20, 1), (9, 4))
    expected = score(models.load({"path": str(folder)})[0], examples, 100).losses
    settings = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(settings))
    losses = score(models.load({"path": str(folder)})[0], examples, 100).losses
    assert losses.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("gpt2", {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}),
        ("opt", {"max_position_embeddings": 16, "hidden_size": 16, "num_hidden_layers": 1}),
        ("mpt", {"max_seq_len": 16, "d_model": 16, "n_layers": 1, "n_heads": 2}),
        ("llama", {"max_position_embeddings": 16, "hidden_size": 16, "num_hidden_layers": 1}),
    ],
)
def test_examples_longer_than_the_models_positions_are_refused(kind, sizes, tokenizer):
    """Rotary positions have no end, so that Llama reads longer texts."""
    heads = {} if kind in ("gpt2", "mpt") else {"num_attention_heads": 2}
    if kind == "opt":
        heads |= {"ffn_dim": 16, "word_embed_proj_dim": 16}
    config = transformers.AutoConfig.for_model(kind, vocab_size=300, **sizes, **heads)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    long, fitting = (Reader(model, tokenizer, Scoring(max_tokens=n)) for n in (17, 16))
    texts = [example.example for example in tiny.upstream(4)]
    assert np.isfinite(fitting.losses(fitting.tokens(texts).examples, "t").losses).all()
    if kind == "llama":
        assert np.isfinite(long.losses(long.tokens(texts).examples, "t").losses).all()
        return
    with pytest.raises(LetheError, match=r"16 positions.*17 tokens.*scoring\.max_tokens"):
        long.tokens(texts)
    with pytest.raises(IndexError if kind != "mpt" else RuntimeError):
        score(model, tiny.tokens((17, 1)), 100)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("gptj", {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4}),
        ("codegen", {"n_positions": 16, "n_ctx": 16, "n_embd": 16, "n_layer": 1, "n_head": 4}),
        ("ctrl", {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2, "dff": 16}),
        ("roberta", {"max_position_embeddings": 18, "hidden_size": 16, "num_hidden_layers": 1}),
    ],
)
def test_tabulated_positions_are_counted_without_reserved_ones(kind, sizes):
    if kind == "codegen":
        sizes = sizes | {"rotary_dim": 2}
    if kind == "roberta":
        sizes = sizes | {"num_attention_heads": 2, "intermediate_size": 16, "is_decoder": True}
    config = transformers.AutoConfig.for_model(kind, vocab_size=300, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert positions_of(model) == 16
    model(torch.ones((1, 16), dtype=torch.long) * 7)
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.ones((1, 17), dtype=torch.long) * 7)


@pytest.fixture
def without_bitsandbytes(monkeypatch):
    """Loads weights as they are wherever bitsandbytes would quantise them; the requests."""
    requests = []
    load_network = Pretrained.load_network

    def load_plain(files, auto_class, **options):
        requests.append(options.pop("quantization_config"))
        return load_network(files, auto_class, **options)

    monkeypatch.setattr(models, "BitsAndBytesConfig", dict)
    monkeypatch.setattr(Pretrained, "load_network", load_plain)
    return requests


def test_weights_in_4_bits_are_checked_as_others_are(saved, without_bitsandbytes):
    folder = saved(untied())
    card = models.card(str(folder)) | {"chat_template": "{{ messages[0].content }}"}
    _, tokenizer = models.load_in_4_bits(card, torch.bfloat16)
    assert tokenizer.chat_template == "{{ messages[0].content }}"
    assert without_bitsandbytes == [
        {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16}
    ]

    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["lm_head.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(LetheError, match=r"model\.safetensors"):
        models.load_in_4_bits(card, torch.bfloat16)
    with pytest.raises(LetheError, match=r"without lm_head\.weight.*without its output layer"):
        models.load_in_4_bits({"path": str(folder)}, torch.bfloat16)
