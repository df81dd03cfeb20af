import pytest
from helpers import tiny

from lethe.data.examples import UpstreamExample, write_upstream


@pytest.fixture
def replay(tmp_path):
    """A pool of texts and pairs, a quarter of them held out."""
    texts = tiny.upstream(12)
    pairs = []
    for number, example in enumerate(tiny.pairs(4)):
        pairs.append(UpstreamExample(f"c-{number:05d}", "c", "replayable", example))
    write_upstream(tmp_path / "replay.parquet", [*texts, *pairs])
    return tmp_path / "replay.parquet"
