import pytest
from pydantic import ValidationError

from lethe.config.loading import load_experiment
from lethe.config.similarity_settings import Similarity
from lethe.errors import ExperimentError


def test_by_default_nothing_is_downloaded_and_nothing_is_trained_again():
    assert set(Similarity().associations).isdisjoint({"text_encoder", "weight_difference"})


def test_a_two_tower_needs_the_embeddings_that_it_reads():
    with pytest.raises(ValidationError, match="representation"):
        Similarity(associations=["two_tower"])
    tower = {"embeddings": "text_encoder"}
    Similarity(associations=["two_tower", "text_encoder"], two_tower=tower)


@pytest.mark.parametrize(
    "change",
    [
        {"associations": ["text_tfidf", "text_tfidf"]},
        {"associations": ["word2vec"]},
        {"encoder": {"source": "package", "sha256": "0"}},
        {"projection": {"dims": 0}},
        {"two_tower": {"folds": 1}},
    ],
)
def test_each_mistake_is_refused(change):
    with pytest.raises(ValidationError):
        Similarity(**change)


def test_an_experiment_says_what_is_missing_for_its_associations(tmp_path):
    (tmp_path / "z.npy").write_bytes(b"")
    (tmp_path / "tasks.csv").write_text(
        "name,group,source,split\na,g,x:a,train\nb,g,x:b,train\nc,g,x:c,test\n"
    )
    config = {
        "experiment": "own",
        "tasks": "tasks.csv",
        "matrix": {"path": "z.npy", "layout": "tasks_in_rows"},
    }
    load_experiment(config, tmp_path)
    with pytest.raises(ExperimentError) as caught:
        encoder = {"source": "folder", "path": "gone"}
        load_experiment({**config, "similarity": {"encoder": encoder}}, tmp_path)
    assert "remove the section" in str(caught.value)
    assert "gone/config.json" in str(caught.value)
