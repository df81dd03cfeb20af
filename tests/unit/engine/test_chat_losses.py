"""Training, scoring and teachers put the loss of a conversation on its assistant turns only."""

import numpy as np
import pytest
import torch
from helpers import chats, tiny

from lethe.config.model_settings import Recipe
from lethe.data.conversations import ChatReader
from lethe.data.tokens import TokenFile, tokenise
from lethe.engine.batches import collate, example_means, token_losses
from lethe.engine.scoring import score
from lethe.engine.teacher import LiveTeacher, StoredTeacher
from lethe.engine.training import fine_tune


@pytest.fixture(scope="module")
def reader():
    return chats.tokenizer()


@pytest.fixture(scope="module")
def tokens(reader):
    examples = [ChatReader()(record) for record in chats.records("messages", 6)]
    return tokenise(reader, examples, 200).examples


def model(reader):
    made = tiny.model("llama", scale=1)
    made.resize_token_embeddings(len(reader))
    return made.eval()


def test_losses_are_those_of_transformers_with_labels_on_assistant_turns(reader, tokens):
    network = model(reader)
    losses = score(network, tokens, 64, "chats").losses
    in_file = TokenFile()
    for example in tokens:
        in_file.append(example)
    np.testing.assert_array_equal(score(network, in_file, 64, "chats").losses, losses)
    for example, loss in zip(tokens, losses, strict=True):
        ids = torch.tensor([example.ids])
        labels = torch.where(torch.from_numpy(example.loss_mask), ids, -100)
        with torch.no_grad():
            expected = network(input_ids=ids, labels=labels).loss.item()
        assert loss == pytest.approx(expected, abs=1e-5)
    assert any(example.gaps for example in tokens)


def test_a_stored_teacher_has_the_positions_of_the_assistant_turns(reader, tokens):
    network = model(reader)
    stored = StoredTeacher(LiveTeacher(network, plain=True), tokens, top_k=None)
    batch = collate(tokens)
    targets = stored.targets(tokens, batch, batch.mask[:, 1:])
    assert len(targets) == batch.mask[:, 1:].sum() == sum(example.scored for example in tokens)


def test_training_lowers_the_loss_of_the_assistant_turns(reader, tokens):
    network = model(reader)
    before = score(network, tokens, 64, "chats").losses.mean()
    recipe = Recipe(steps=20, batch=3, lr=3e-2, warmup_steps=1, max_epochs=None)
    fine_tune(network, tokens, recipe, "chats")
    network.eval()
    assert score(network, tokens, 64, "chats").losses.mean() < before - 0.3


def test_the_mean_of_a_batch_counts_every_assistant_token(reader, tokens):
    network = model(reader)
    with torch.no_grad():
        losses, rows = token_losses(network, collate(tokens))
    assert len(losses) == sum(example.scored for example in tokens)
    means = example_means(losses, rows, len(tokens))
    np.testing.assert_allclose(means, score(network, tokens, 64, "chats").losses, atol=1e-5)
