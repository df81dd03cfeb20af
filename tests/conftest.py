import os

import pytest

# Set before torch and tokenizers are imported: tests run side by side and never fetch anything.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

from helpers import tiny


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE tokenizer of 300 entries, trained on a page of text."""
    return tiny.tokenizer()


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory, tokenizer):
    """Architecture -> card of a tiny model saved with its tokenizer, each made once."""
    return tiny.Folders(tmp_path_factory.mktemp("models"), tokenizer)
