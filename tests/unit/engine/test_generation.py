import numpy as np
import pytest
import torch
from helpers import tiny

from lethe.engine import generation
from lethe.engine.generation import (
    generate,
    grade,
    match_by_chance,
    normalise_plain,
    normalise_squad,
    token_f1,
)
from lethe.errors import LetheError


def prompts(tokenizer, count=7):
    """Prompts of different lengths."""
    texts = [" ".join(text.split()[: 2 + i % 5]) for i, text in enumerate(tiny.sentences(count))]
    return [tokenizer(text)["input_ids"] for text in texts]


def by_hand(model, prompt, count, end):
    """Greedy decoding without a cache, one token after the other."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == end:
            break
        ids.append(token)
    return ids[len(prompt) :]


def cut(text):
    return text.split("\n\n")[0].strip()


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_answers_are_those_of_greedy_decoding_one_prompt_at_a_time(architecture, tokenizer):
    model, asked = tiny.model(architecture), prompts(tokenizer)
    wanted = [cut(tokenizer.decode(by_hand(model, p, 6, tokenizer.eos_token_id))) for p in asked]
    assert len(set(wanted)) > 2
    for budget in (1, 40, 1000):
        assert generate(model, tokenizer, asked, 6, budget) == wanted


def test_the_models_own_generation_settings_do_not_matter_and_stay(tokenizer):
    model, asked = tiny.model("llama"), prompts(tokenizer)
    plain = generate(model, tokenizer, asked, 6, 100)
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0
    model.generation_config.repetition_penalty = 3.0
    model.train()
    assert generate(model, tokenizer, asked, 6, 100) == plain
    assert model.generation_config.repetition_penalty == 3.0
    assert model.training


class Scripted:
    """A model that says what it is told to, token by token, whatever it is asked."""

    def __init__(self, tokenizer, said):
        self.ids = [tokenizer(text)["input_ids"] for text in said]
        self.end, self.steps, self.training = tokenizer.eos_token_id, 0, False
        self.generation_config = generation.GenerationConfig(eos_token_id=self.end)
        self.device = torch.device("cpu")

    def eval(self):
        return self

    def train(self, mode):
        return self

    def generate(self, ids, *, stopping_criteria, generation_config, **_):
        done = torch.zeros(len(ids), dtype=torch.bool)
        for step in range(generation_config.max_new_tokens):
            new = torch.tensor([line[step] if step < len(line) else self.end for line in self.ids])
            new[done] = generation_config.pad_token_id
            ids = torch.cat([ids, new[:, None]], dim=1)
            done |= (new == self.end) | stopping_criteria(ids, None)
            self.steps = step + 1
            if done.all():
                break
        return ids


def test_an_answer_ends_at_the_first_blank_line_and_generation_stops_there(tokenizer):
    said = ["seven sacks\n\nand one more if you stay ashore", "cold\nand slow\n\n\n more"]
    model = Scripted(tokenizer, said)
    answers = generate(model, tokenizer, [[1, 2], [3, 4]], 200, 1000)
    assert answers == ["seven sacks", "cold\nand slow"]
    blank = max(len(tokenizer(text.split("\n\n")[0] + "\n\n")["input_ids"]) for text in said)
    assert model.steps <= blank + 1


def test_what_stands_behind_the_end_token_is_no_answer(tokenizer):
    model = Scripted(tokenizer, ["seven", "a longer answer, as long as it likes"])
    assert generate(model, tokenizer, [[1], [2]], 60, 1000)[0] == "seven"


def test_answers_that_are_known_are_not_asked_for_again(tokenizer):
    model, asked = tiny.model("olmo"), prompts(tokenizer)
    seen = []
    whole = generate(model, tokenizer, asked, 4, 20, after_batch=lambda a: seen.append(list(a)))
    middle = seen[len(seen) // 2]
    assert None in middle and any(middle)
    known = [answer and f"{answer} (known)" for answer in middle]
    again = generate(model, tokenizer, asked, 4, 20, partial=known)
    assert again == [b or a for a, b in zip(whole, known, strict=True)]


def test_a_batch_that_does_not_fit_is_answered_in_halves(tokenizer, monkeypatch):
    model, asked = tiny.model("olmo"), prompts(tokenizer)
    whole = generate(model, tokenizer, asked, 4, 1000)
    inside = type(model).generate

    def small(self, ids, **options):
        if len(ids) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return inside(self, ids, **options)

    monkeypatch.setattr(type(model), "generate", small)
    assert generate(model, tokenizer, asked, 4, 1000) == whole


def test_a_single_prompt_that_does_not_fit_is_an_error_that_says_what_to_do(tokenizer, monkeypatch):
    model = tiny.model("olmo")

    def never(self, ids, **options):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(type(model), "generate", never)
    with pytest.raises(LetheError, match=r"one prompt of 3 tokens.*scoring\.max_tokens"):
        generate(model, tokenizer, [[1, 2, 3]], 4, 1000)
    monkeypatch.setattr(type(model), "generate", lambda *_, **__: [][1])
    with pytest.raises(IndexError):
        generate(model, tokenizer, [[1, 2, 3]], 4, 1000)


@pytest.mark.parametrize(
    ("wanted", "right", "wrong"),
    [("(A)", "a", ""), ("A", " A.", "B"), ("+", "+ ", "-"), ("the cat", "Cat", "a dog")],
)
def test_an_answer_that_is_all_article_or_punctuation_must_be_given(wanted, right, wrong):
    graded = grade([right, wrong], [wanted] * 2, "squad")
    assert graded.exact_match.tolist() == [1, 0]
    assert graded.token_f1[0] == 1 and graded.token_f1[1] < 1


def test_normalisers_take_off_what_they_say():
    text = " The  Answer, an apple-pie:\n\ta (Pie)! "
    assert normalise_squad(text) == "answer applepie pie"
    assert normalise_plain(text) == "The Answer, an apple-pie: a (Pie)!"
    assert normalise_squad("theatre") == "theatre"


def test_token_f1_counts_words_with_their_number():
    assert token_f1("a b c", "a b c") == 1
    assert token_f1("a a b", "a b b") == pytest.approx(2 / 3)
    assert token_f1("a b", "a b c d") == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert token_f1("x", "y") == 0
    assert token_f1("", "") == 1
    assert token_f1("", "y") == 0


def test_grades_are_fractions_and_nan_where_nothing_was_asked():
    graded = grade(["The sea", None, "blue sea", "Sea"], ["sea", "sea", "sea", "sea"], "squad")
    np.testing.assert_array_equal(graded.exact_match, np.float32([1, np.nan, 0, 1]))
    np.testing.assert_allclose(graded.token_f1, [1, np.nan, 2 / 3, 1], rtol=1e-6)
    plain = grade(["The sea", "Sea"], ["sea", "Sea"], "plain")
    np.testing.assert_array_equal(plain.exact_match, [0, 1])


def test_chance_is_the_share_of_the_groups_other_answers_that_would_be_right_here():
    answers = ["yes", "The no", "yes", None, "sea"]
    targets = ["Yes", "no", "no", "yes", "yes"]
    groups = ["a", "a", "a", "a", "b"]
    chance = match_by_chance(answers, targets, groups, "squad")
    # The fourth question has no answer of its own; the fifth is alone in its group.
    np.testing.assert_allclose(chance, [1 / 2, 0, 1 / 2, 2 / 3, np.nan], rtol=1e-6)
