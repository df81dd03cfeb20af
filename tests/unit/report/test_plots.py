import re
from dataclasses import replace

import numpy as np
import pytest
from helpers import found

from lethe.report import plots


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return found.read(tmp_path_factory.mktemp("findings"))


def drawn(name, findings, folder):
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    plots.save(plots.draw(name, findings), *paths)
    return [path.read_bytes() for path in paths]


@pytest.mark.parametrize("name", plots.FIGURES)
def test_a_figure_has_the_same_bytes_every_time_and_escapes_names(name, findings, tmp_path):
    first, second = (drawn(name, findings, tmp_path / folder) for folder in "ab")
    assert first == second
    png, svg = first
    assert png.startswith(b"\x89PNG")
    text = svg.decode()
    assert text.startswith("<?xml")
    assert "<b>" not in text
    assert not re.search(r'(?:href|src)="(?!#|data:)', text)


OWN = ("overview", "heatmap", "spectrum", "rank_curves", "completion")


@pytest.mark.parametrize("name", OWN)
def test_a_matrix_of_ones_own_has_its_figures(name, tmp_path):
    own = found.read(tmp_path, ("own",), own=True)
    assert all(drawn(name, own, tmp_path))


def test_intervals_that_are_unknown_or_rounded_over_the_mean_can_be_drawn(findings, tmp_path):
    table = findings.comparisons["one"].copy()
    unknown = table.assign(**{key: np.nan for key in table if key.endswith(("_low", "_high"))})
    rounded = table.assign(
        heldout_forgetting_low=table.heldout_forgetting + 1e-9,
        heldout_forgetting_difference_high=table.heldout_forgetting_difference - 1e-9,
    )
    for comparison in (unknown, rounded):
        assert drawn("replay", replace(findings, comparisons={"one": comparison}), tmp_path)


def test_a_heat_map_has_a_row_for_each_task_by_group_and_cuts_its_colours(findings):
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    z = found.z()
    z.values[0, 0] = 1000
    image = plots.heat(axis, z, findings)
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "007",
        "sums",
        "null",
        "poems",
    ]
    assert image.get_array().shape == (4, 11), "of one of the twelve nothing is known"
    assert image.get_clim()[1] < 1000
    assert image.get_clim()[0] == -image.get_clim()[1]


def test_a_matrix_without_any_forgetting_can_be_drawn(findings, tmp_path):
    z = replace(found.z(), values=np.zeros((4, 12), np.float32))
    assert drawn("heatmap", replace(findings, matrices={"one": z, "two": z}), tmp_path)


def test_every_method_and_strategy_has_a_label_and_a_colour():
    from typing import get_args

    from lethe.config.analysis_settings import CompletionMethod
    from lethe.config.replay_settings import Strategy

    names = set(get_args(CompletionMethod)) | set(get_args(Strategy))
    assert names <= set(plots.LABELS)
    assert names <= set(plots.COLOURS)


def test_what_no_task_knows_has_no_column_in_a_heat_map(findings):
    from matplotlib.figure import Figure

    z = found.z()
    wanted = int(np.isfinite(z.values).any(axis=0).sum())
    z.values[:, 3] = np.nan
    image = plots.heat(Figure().subplots(), z, findings)
    assert image.get_array().shape[1] == wanted - 1


def test_a_z_of_zeros_and_ones_speaks_of_answers(findings):
    assert (findings.unit, findings.binary) == ("nats", False)
    z = found.z()
    z.values[:] = np.where(np.isfinite(z.values), z.values > np.nanmedian(z.values), np.nan)
    answers = replace(findings, matrices={"one": z})
    assert answers.binary and answers.measure == "right answers lost (share)"
    figure = plots.draw("forgetting_by_task", replace(answers, matrices={"one": z, "two": z}))
    assert figure.axes[0].get_xlabel() == "mean right answers lost (share)"
