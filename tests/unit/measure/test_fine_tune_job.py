import numpy as np
from helpers import tiny

from lethe.config.model_settings import Recipe, Scoring, recipe_of
from lethe.data.examples import write_examples
from lethe.files import write_json
from lethe.matrix import rows
from lethe.measure.fine_tune_job import fine_tune_job


def test_a_fine_tune_is_read_from_the_files_of_its_rule(tmp_path):
    pairs = tiny.pairs(4)
    row = rows.Row(["a"], np.ones(1, "f4"), np.ones(1, "f4"), np.ones(1, "i4"), {"model": "m"})
    paths = {name: tmp_path / name for name in ("card", "base", "train", "evaluation")}
    write_json(paths["card"], {"path": "somewhere"})
    rows.write_row(paths["base"], row)
    write_examples(paths["train"], pairs[:3])
    write_examples(paths["evaluation"], pairs[3:])
    recipe = Recipe(steps=7, group_steps={"g": 9})
    job = fine_tune_job(
        paths, recipe=recipe, scoring=Scoring(max_tokens=9), threads=1, gpus=0, group="g"
    )
    assert (job.card, job.base.settings) == ({"path": "somewhere"}, {"model": "m"})
    assert (job.train, job.evaluation) == (pairs[:3], pairs[3:])
    assert (job.recipe, job.scoring) == (recipe, Scoring(max_tokens=9))
    assert job.group == "g"


def test_the_recipe_of_a_rule_leaves_out_the_group():
    grouped = {"steps": 7, "group_steps": {"g": 9}, "group": "g"}
    assert recipe_of(grouped) == Recipe(steps=7, group_steps={"g": 9})
    assert recipe_of({"steps": 7}) == Recipe(steps=7)
