from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "envs").glob("*.yaml")), ids=lambda p: p.stem)
def test_conda_environments_pin_the_versions_of_requirements(path):
    pinned = set((ROOT / "requirements.txt").read_text().split())
    *_, pip = yaml.safe_load(path.read_text())["dependencies"]
    assert pip["pip"] and set(pip["pip"]) <= pinned
