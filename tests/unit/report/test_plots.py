import re
from dataclasses import replace

import numpy as np
import pytest
from helpers import findings as tiny_findings
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from lethe.report import figure_style, heat_map, plots


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return tiny_findings.make_findings(tmp_path_factory.mktemp("findings"))


def image_bytes(name, findings, folder):
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    figure_style.save_figure(plots.draw_figure(name, findings), *paths)
    return [path.read_bytes() for path in paths]


@pytest.mark.parametrize("name", plots.FIGURES)
def test_a_figure_has_the_same_bytes_every_time_and_escapes_names(name, findings, tmp_path):
    first, second = (image_bytes(name, findings, tmp_path / folder) for folder in "ab")
    assert first == second
    png, svg = first
    assert png.startswith(b"\x89PNG")
    text = svg.decode()
    assert text.startswith("<?xml")
    assert "<b>" not in text
    assert not re.search(r'(?:href|src)="(?!#|data:)', text)


IMPORTED = ("overview", "heatmap", "spectrum", "rank_curves", "task_tree", "completion")


@pytest.mark.parametrize("name", IMPORTED)
def test_an_imported_matrix_has_its_figures(name, tmp_path):
    imported = tiny_findings.make_findings(tmp_path, ["own"], imported=True)
    assert all(image_bytes(name, imported, tmp_path))


def test_tasks_that_share_no_example_have_no_tree(findings, tmp_path):
    z = tiny_findings.z()
    values = np.full_like(z.values, np.nan)
    nothing = replace(findings, matrices={"one": replace(z, values=values)})
    assert all(image_bytes("task_tree", nothing, tmp_path))


def test_intervals_that_are_unknown_or_rounded_over_the_mean_can_be_drawn(findings, tmp_path):
    table = findings.comparisons["one"].copy()
    unknown = table.assign(**{key: np.nan for key in table if key.endswith(("_low", "_high"))})
    rounded = table.assign(
        heldout_forgetting_low=table.heldout_forgetting + 1e-9,
        heldout_forgetting_difference_high=table.heldout_forgetting_difference - 1e-9,
    )
    for comparison in (unknown, rounded):
        assert image_bytes("replay", replace(findings, comparisons={"one": comparison}), tmp_path)


def test_a_heat_map_has_a_row_for_each_task_by_group_and_cuts_its_colours(findings):
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    z = tiny_findings.z()
    z.values[0, 0] = 1000
    image = heat_map.draw_matrix(axis, z, findings)
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "007",
        "sums",
        "null",
        "poems",
    ]
    assert image.get_array().shape == (4, 11), "one of the twelve examples has no values"
    assert image.get_clim()[1] < 1000
    assert image.get_clim()[0] == -image.get_clim()[1]


def test_a_matrix_without_any_forgetting_can_be_drawn(findings, tmp_path):
    z = replace(tiny_findings.z(), values=np.zeros((4, 12), np.float32))
    assert image_bytes("heatmap", replace(findings, matrices={"one": z, "two": z}), tmp_path)


def test_every_method_and_strategy_has_a_label_and_a_colour():
    from typing import get_args

    from lethe.config.analysis_settings import CompletionMethod
    from lethe.config.replay_settings import Strategy

    names = set(get_args(CompletionMethod)) | set(get_args(Strategy))
    assert names <= set(figure_style.LABELS)
    assert names <= set(figure_style.COLOURS)


def test_an_example_without_values_has_no_column_in_a_heat_map(findings):
    from matplotlib.figure import Figure

    z = tiny_findings.z()
    columns = int(np.isfinite(z.values).any(axis=0).sum())
    z.values[:, 3] = np.nan
    image = heat_map.draw_matrix(Figure().subplots(), z, findings)
    assert image.get_array().shape[1] == columns - 1


def test_the_unit_of_a_binary_z_is_a_share_of_answers(findings):
    assert (findings.unit, findings.binary) == ("nats", False)
    z = tiny_findings.z()
    z.values[:] = np.where(np.isfinite(z.values), z.values > np.nanmedian(z.values), np.nan)
    answers = replace(findings, matrices={"one": z})
    assert answers.binary and answers.measure == "right answers lost (share)"
    figure = plots.draw_figure(
        "forgetting_by_task", replace(answers, matrices={"one": z, "two": z})
    )
    assert figure.axes[0].get_xlabel() == "mean right answers lost (share)"


def test_a_run_has_one_colour_in_all_panels_of_replay(findings):
    table = findings.comparisons["one"].copy()
    table["strategy"] = ["none", "random", "first-run", "second-run"][: len(table)]
    figure = plots.draw_replay(replace(findings, comparisons={"one": table}))
    bars, differences, points = figure.axes
    expected = [to_hex(bar.get_facecolor()) for bar in bars.patches]
    drawn = [to_hex(line.get_color()) for line in points.lines]
    assert drawn == expected
    markers = [line for line in differences.lines if line.get_marker() == "o"]
    assert [to_hex(line.get_color()) for line in markers] == expected[2:]


def test_drift_and_the_worst_domain_are_marked_on_the_bars_of_forgetting(findings):
    table = findings.comparisons["one"]
    table = table.assign(drift=0.3, worst_domain_forgetting=np.arange(len(table)) / 10)
    bars, *_ = plots.draw_replay(replace(findings, comparisons={"one": table})).axes
    drift, worst = (line for line in bars.lines if line.get_marker() in ("D", ">"))
    assert drift.get_xdata().tolist() == [0.3] * len(table)
    assert worst.get_xdata().tolist() == table.worst_domain_forgetting.tolist()
    assert len(bars.get_legend().get_texts()) == 2


def test_the_curve_of_precision_has_a_line_per_number_of_training_tasks(findings):
    figure = plots.draw_figure("precision", findings)
    top, error = figure.axes[:2]
    assert [text.get_text() for text in top.get_legend().get_texts()] == [
        "2 training tasks",
        "20 training tasks",
    ]
    np.testing.assert_allclose(top.lines[2].get_ydata(), [0.1, 0.3])
    np.testing.assert_allclose(error.lines[1].get_ydata(), [0.05, 0.05 / 3], rtol=1e-6)
    assert "(nats)" in error.get_ylabel()


def test_errors_are_drawn_by_number_of_probes_in_any_order_of_the_settings(findings):
    scores = findings.completions["one"]
    axis = Figure().add_subplot()
    plots.draw_errors(axis, scores.iloc[::-1], "nats")
    for line in axis.get_lines():
        assert list(line.get_xdata()) == sorted(line.get_xdata())


def test_bars_of_the_trade_off_are_intervals_of_the_differences_to_random_replay(findings):
    from matplotlib.figure import Figure

    table = findings.comparisons["one"]
    for measure, width in (("eval_loss_after", 0.5), ("heldout_forgetting", 0.25)):
        middle = table[f"{measure}_difference"]
        table = table.assign(**{f"{measure}_difference_low": middle - width})
        table = table.assign(**{f"{measure}_difference_high": middle + width})
    axis = Figure().subplots()
    plots.draw_trade_off(axis, table, "rise in loss")
    across, upright = axis.collections
    others = table[table.strategy != "random"]
    assert len(across.get_segments()) == len(upright.get_segments()) == len(others)
    ends = [segment[:, 0] for segment in across.get_segments()]
    expected = [[loss - 0.5, loss + 0.5] for loss in others.eval_loss_after]
    np.testing.assert_allclose(ends, expected)
    ends = [segment[:, 1] for segment in upright.get_segments()]
    expected = [[forgetting - 0.25, forgetting + 0.25] for forgetting in others.heldout_forgetting]
    np.testing.assert_allclose(ends, expected)
