import pytest

from lethe.config.model_settings import Pretraining
from lethe.data.examples import Example, UpstreamExample
from lethe.data.tokens import Tokens
from lethe.engine import models

WORDS = ["crosses", "runs", "freezes", "bends", "told", "sung", "lost"]


@pytest.fixture(scope="session", params=["olmo", "gpt_neox", "mpt"])
def model(request):
    settings = Pretraining(hidden=16, layers=2, heads=2, vocabulary=300, context=32)
    return models.from_scratch(request.param, settings, 300, 0).eval()


@pytest.fixture
def tokens():
    """Examples of different lengths, with loss on all of it, on the end, and on nothing."""
    lengths = [12, 5, 9, 2, 12, 7]
    sequences = [Tokens([(7 * i + 31 * n) % 299 + 1 for i in range(n)], 1) for n in lengths]
    return [*sequences, Tokens([5, 6, 7, 8, 9], 3), Tokens([5, 6, 7], 3)]


@pytest.fixture
def tasks():
    return {
        "rivers": [Example(f"the river {word}", "a cold ferry") for word in WORDS[:4]],
        "stories": [Example(f"old stories {word}", "are forgotten") for word in WORDS[4:7]],
    }


@pytest.fixture
def upstream():
    texts = ["a ferry crosses the river", "old stories are told", "zebra", "..."]
    return [
        UpstreamExample(f"e{i}", "d", "replayable", Example(text=text))
        for i, text in enumerate(texts)
    ]
