import numpy as np
import pytest
import torch
from helpers import tiny

from lethe.config.model_settings import LoRA
from lethe.data.tokens import Tokens
from lethe.engine import models
from lethe.engine.batches import collate, token_losses
from lethe.engine.scoring import largest_budget, score

# Plain text, a pair, a one-token answer, one scored token after the first, the longest that fits.
SHAPES = [(9, 1), (23, 14), (17, 16), (2, 1), (tiny.CONTEXT, 1), (23, 5), (9, 8)]
EXACT = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def model(request):
    return tiny.model(request.param)


@pytest.fixture(scope="module")
def examples():
    return tiny.tokens(*SHAPES)


def reference(model, example: Tokens) -> float:
    """Transformers' own loss of one example: it shifts and masks by itself."""
    ids = torch.tensor([example.ids])
    labels = ids.clone()
    labels[0, : example.start] = -100
    with torch.no_grad():
        return model(input_ids=ids, labels=labels).loss.item()


def test_a_loss_is_transformers_own_shifted_and_masked_loss(model, examples):
    expected = [reference(model, example) for example in examples]
    # The tiny models are far from uniform, so that a wrong shift or mask cannot go unseen.
    assert np.std(expected) > 0.1
    alone = [score(model, [example], 4096).losses[0] for example in examples]
    np.testing.assert_allclose(alone, expected, **EXACT)
    np.testing.assert_allclose(score(model, examples, 4096).losses, expected, **EXACT)


def test_padding_on_the_left_with_a_mask_gives_the_same_losses(model, examples):
    """Transformers' batch, padded on the other side, position ids where the model takes them."""
    length = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), length), 7)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(examples):
        ids[row, length - len(example.ids) :] = torch.tensor(example.ids)
        mask[row, length - len(example.ids) :] = 1
    positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    with torch.no_grad():
        # MPT counts from the end (ALiBi); it has no position ids.
        given = {} if model.config.model_type == "mpt" else positions
        logits = model(input_ids=ids, attention_mask=mask, **given).logits
    expected = []
    for row, example in enumerate(examples):
        own = logits[row, length - len(example.ids) :]
        losses = torch.nn.functional.cross_entropy(
            own[:-1], torch.tensor(example.ids[1:]), reduction="none"
        )
        expected.append(losses[example.start - 1 :].mean().item())
    np.testing.assert_allclose(score(model, examples, 4096).losses, expected, **EXACT)


@pytest.mark.parametrize("tokens_per_batch", [1, 60, 4096])
def test_losses_depend_neither_on_the_batch_nor_on_the_order(model, examples, tokens_per_batch):
    expected = score(model, examples, 200).losses
    found = score(model, examples[::-1], tokens_per_batch).losses[::-1]
    np.testing.assert_allclose(found, expected, **EXACT)


def test_scoring_twice_gives_the_same_bits(model, examples):
    first, second = (score(model, examples, 100).losses.tobytes() for _ in range(2))
    assert first == second


def test_what_stands_before_and_after_the_scored_tokens_is_not_averaged_in(model):
    (example,) = tiny.tokens((12, 9))
    losses, rows = token_losses(model, collate([example]))
    assert rows.tolist() == [0, 0, 0]
    found = score(model, [example, *tiny.tokens((30, 1), seed=1)], 4096)
    assert found.losses[0] == pytest.approx(losses.mean().item(), abs=1e-5)
    assert found.tokens.tolist() == [3, 29]


def test_the_first_token_is_never_scored(model):
    losses, _ = token_losses(model, collate([Tokens([5, 6, 7], 1)]))
    assert len(losses) == 2
    # Even if an example claims so: nothing stands before it.
    losses, _ = token_losses(model, collate([Tokens([5, 6, 7], 0)]))
    assert len(losses) == 2


def test_logits_are_shifted_by_exactly_one(model):
    """The log-probability of a token is read from the position before it and from no other."""
    (example,) = tiny.tokens((20, 1))
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([example.ids])).logits[0].log_softmax(-1)
        losses, _ = token_losses(model, collate([example]))
    ids = torch.tensor(example.ids)
    shifted = {shift: -logs[range(20 - shift), ids[shift:]].mean().item() for shift in (0, 1, 2)}
    assert losses.mean().item() == pytest.approx(shifted[1], abs=1e-5)
    assert all(abs(losses.mean().item() - shifted[wrong]) > 1e-2 for wrong in (0, 2))


def test_an_example_without_a_scored_token_is_nan_and_never_zero(model):
    found = score(model, [*tiny.tokens((8, 1)), Tokens([4, 5], 2), Tokens([], 1)], 4096)
    assert np.isfinite(found.losses).tolist() == [True, False, False]
    assert found.tokens.tolist() == [7, 0, 0]


def test_nothing_to_score_is_no_error(model):
    assert np.isnan(score(model, [Tokens([4], 1)], 4096).losses).all()
    assert len(score(model, [], 4096).losses) == 0


def test_scoring_leaves_the_mode_of_the_model_as_it_was(model, examples):
    model.train()
    score(model, examples[:1], 4096)
    assert model.training
    model.eval()


def test_untrained_adapters_change_no_loss_and_trained_ones_count(examples):
    """The wrapped model is scored with its adapters, the base model without."""
    model = tiny.model("llama")
    before = score(model, examples, 4096).losses
    wrapped = models.add_lora(model, LoRA(rank=2, dropout=0.5), seed=0)
    np.testing.assert_array_equal(score(wrapped, examples, 4096).losses, before)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert np.abs(score(wrapped, examples, 4096).losses - before).min() > 1e-3


def test_a_budget_grows_until_memory_is_used_up():
    tried = []

    def share_used(budget):
        tried.append(budget)
        return budget / 10_000

    assert largest_budget(share_used, 1000, 10**6) == 4000
    assert tried == [2000, 4000, 8000]
    assert largest_budget(share_used, 1000, 3000) == 2000, "no larger than all there is"
    assert largest_budget(lambda budget: 1.0, 1000, 10**6) == 1000, "what is tried last did not fit"
