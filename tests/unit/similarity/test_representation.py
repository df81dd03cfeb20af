import numpy as np
import torch

from lethe.data.tokens import Tokens
from lethe.similarity.embeddings import batches_by_length
from lethe.similarity.representation import represent


def test_a_representation_is_the_mean_of_the_states_that_the_output_layer_reads(model, tokens):
    actual = represent(model, tokens[:1], 1000)[0]
    with torch.no_grad():
        states = model(torch.tensor([tokens[0].ids]), output_hidden_states=True).hidden_states[-1]
    np.testing.assert_allclose(actual, states[0].mean(dim=0).numpy(), rtol=1e-5, atol=1e-6)


def test_neither_padding_nor_batching_changes_a_representation(model, tokens):
    alone = np.concatenate([represent(model, [example], 1000) for example in tokens])
    for tokens_per_batch in (1, 24, 1000):
        together = represent(model, tokens, tokens_per_batch)
        np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_an_example_without_tokens_has_no_representation(model, tokens):
    actual = represent(model, [tokens[0], Tokens([], 0)], 1000)
    assert np.isfinite(actual[0]).all() and np.isnan(actual[1]).all()


def test_batches_hold_every_sequence_once_and_no_more_tokens_than_allowed():
    lengths = [3, 0, 8, 8, 1, 5, 40]
    batches = list(batches_by_length(lengths, 16))
    assert sorted(i for batch in batches for i in batch) == [0, 2, 3, 4, 5, 6]
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 16 for b in batches)
