"""Which tokens of a trainer's batch are prompts, and random positions of them."""

import pytest
import torch
from helpers import tiny

from lethe.engine.batches import collate
from lethe.engine.objectives import prompt_positions
from lethe.errors import LetheError
from lethe.integrations.prompt_divergence import documents, prompt_mask, sample_positions

PAIRS = tiny.tokens((9, 4), (6, 1), (12, 10), (5, 5))


def trainers_batch(examples):
    batch = collate(examples)
    return {"input_ids": batch.ids, "labels": torch.where(batch.mask, batch.ids, -100)}


def test_prompts_of_pairs_are_those_of_the_workflow():
    examples = PAIRS[:3]
    expected = prompt_positions(collate(examples))
    assert torch.equal(prompt_mask(trainers_batch(examples)), expected)


def test_an_example_without_loss_has_no_prompt():
    assert not prompt_mask(trainers_batch(PAIRS))[3].any()


def test_turns_between_answers_are_prompts_and_padding_is_none():
    labels = torch.tensor([[-100, -100, 5, -100, -100, 6, 7, -100, -100]])
    inputs = {"input_ids": torch.arange(1, 10)[None], "labels": labels}
    expected = [True, False, True, True, False, False, False, False]
    assert prompt_mask(inputs)[0].tolist() == expected
    attention = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1, 1]])
    masked = prompt_mask(inputs | {"attention_mask": attention})[0].tolist()
    assert masked == [False, *expected[1:]]


def test_documents_of_a_packed_row_are_apart():
    labels = torch.tensor([[-100, -100, 5, -100, -100, -100, 7]])
    places = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    inputs = {"input_ids": torch.arange(1, 8)[None], "labels": labels, "position_ids": places}
    assert prompt_mask(inputs)[0].tolist() == [True, False, False, True, True, False]
    assert documents(inputs)[0].tolist() == [0, 0, 1, 1, 1, 1]
    two_rows = {name: value.repeat(2, 1) for name, value in inputs.items()}
    assert documents(two_rows).tolist() == [[0, 0, 1, 1, 1, 1], [2, 2, 3, 3, 3, 3]]


def test_random_positions_are_a_few_per_document_and_right_on_average():
    mask = torch.zeros(3, 8, dtype=torch.bool)
    mask[0, :7] = True
    mask[1, 2] = True
    document = torch.arange(3)[:, None].expand(3, 8)
    total = torch.zeros(3, 8)
    draws = 600
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        positions, weights = sample_positions(mask, document, 2, generator)
        assert positions.sum(1).tolist() == [2, 1, 0]
        assert weights.tolist() == [3.5, 3.5, 1.0]
        total[positions] += weights
    torch.testing.assert_close(total / draws, mask.float(), rtol=0, atol=0.25)
    positions, weights = sample_positions(mask, document, 99, torch.Generator())
    assert torch.equal(positions, mask)
    assert set(weights.tolist()) == {1.0}


@pytest.mark.parametrize("name", ["input_ids", "labels"])
def test_a_batch_that_lacks_a_part_is_refused(name):
    batch = trainers_batch(PAIRS)
    del batch[name]
    with pytest.raises(LetheError, match=f"batches have no {name}"):
        prompt_mask(batch)
