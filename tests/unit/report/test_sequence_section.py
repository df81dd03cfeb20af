from dataclasses import replace

import numpy as np
import pytest
from helpers.findings import TASKS, write_tables

from lethe import tables
from lethe.analysis.sequence_measures import (
    HeldOutExamples,
    compare_runs,
    measure_lines,
    step_lines,
)
from lethe.analysis.sequence_sums import additivity_lines, choice_lines, prediction_lines
from lethe.matrix.sequence_rows import MeasuredSequence, TaskScores
from lethe.report.findings import read_findings
from lethe.report.headlines import make_headlines
from lethe.report.plots import draw_figure
from lethe.report.report_page import render_page
from lethe.report.sequence_section import sequence_headlines

RNG = np.random.default_rng(1)
ROWS = {name: RNG.normal(0.3, 0.2, size=12) for name in TASKS}
NAMES = list(TASKS)


def followed(run, orders, factor, exact=False):
    """Sequences of one run; every row is a share of the last task's and of the sum."""
    sequences = []
    for number in range(orders):
        tasks = [NAMES[(position + number) % 4] for position in range(4)]
        if number >= 4:
            tasks = tasks[::-1]
        rows = np.array([ROWS[task] for task in tasks])
        after = np.full((4, 4), np.nan)
        after[np.tril_indices(4)] = -1.0 - 0.1 * np.arange(10)
        scores = TaskScores(
            after=after,
            before=np.full(4, -2.0),
            base=np.full(4, -3.0),
            single=np.full(4, -1.0),
        )
        sequences.append(
            MeasuredSequence(
                order=f"order {number}",
                run=run,
                seed=0,
                tasks=tasks,
                forgetting=factor * (rows + 0.2 * np.cumsum(rows, axis=0)),
                scores={"nats": scores} | ({"exact_match": scores} if exact else {}),
                replayed=[0] * 4,
            )
        )
    return sequences


def write_sequences(folder, orders=6, exact=False):
    sequences = followed("none", orders, 1.0, exact) + followed("gaussian", 3, 0.4, exact)
    heldout = HeldOutExamples(np.arange(12) % 4 == 0, domains=["a", "b", "b"])
    lines = measure_lines(sequences, [], heldout, {})
    written = {
        "steps": step_lines(sequences, heldout, ROWS),
        "comparison": compare_runs(lines, "none"),
        "additivity": additivity_lines(sequences, ROWS),
        "prediction": prediction_lines(sequences, ROWS, probes=4),
        "choice": choice_lines(sequences, ROWS),
    }
    paths = []
    for name, records in written.items():
        paths.append(str(folder / "one" / f"sequence_{name}.csv"))
        tables.write_csv(paths[-1], records)
    return paths


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("findings")
    inputs = write_tables(folder) | {"sequences": write_sequences(folder)}
    return read_findings(inputs, ["one", "two"], TASKS)


def test_the_headlines_give_the_numbers_of_the_tables(findings):
    of_one = findings.sequences["one"]
    first, replayed, sums, probes, chosen = sequence_headlines(of_one)
    mean = of_one.value("none", "heldout_forgetting")["mean"]
    assert first.startswith("After 4 tasks in a row (no replay)")
    assert f"{abs(mean):.3f} nats {'below' if mean < 0 else 'above'} that of the base" in first
    assert "6 orders" in first
    assert "Gaussian" in replayed and "3 orders" in replayed
    assert "recency" in sums and "last task alone" in sums
    assert probes.startswith("RMSE in nats")
    assert "rank correlation" in chosen and "above the best of 6" in chosen
    assert "After 4 tasks in a row" in " ".join(make_headlines(findings)["one"])
    assert "in a row" not in " ".join(make_headlines(findings)["two"])


def test_the_reference_is_the_run_that_the_table_names(findings):
    of_one = findings.sequences["one"]
    assert of_one.reference_run == "none"
    comparison = of_one.comparison.assign(reference="gaussian")
    assert replace(of_one, comparison=comparison).reference_run == "gaussian"
    earlier = replace(of_one, comparison=comparison.drop(columns="reference"))
    assert earlier.reference_run == "none"


def test_a_correlation_without_information_is_not_shown(findings):
    of_one = findings.sequences["one"]
    biased = of_one.choice.assign(spearman=-1.0, p=1e-5, spearman_of_halves=np.nan)
    text = sequence_headlines(replace(of_one, choice=biased))[-1]
    assert "-1.00" not in text and "1e-05" not in text
    assert "The orders span" in text


def test_one_order_has_no_spread_and_no_interval(tmp_path):
    inputs = write_tables(tmp_path) | {"sequences": write_sequences(tmp_path, orders=1)}
    of_one = read_findings(inputs, ["one", "two"], TASKS).sequences["one"]
    text = " ".join(sequence_headlines(of_one))
    assert "nan" not in text and "(1 order)" in text and "(no interval)" in text


def test_orders_of_several_lengths_are_counted_each(findings):
    of_one = findings.sequences["one"]
    steps = of_one.steps[(of_one.steps.order != "order 0") | (of_one.steps.step <= 2)]
    assert "After 2 to 4 tasks in a row" in sequence_headlines(replace(of_one, steps=steps))[0]


def test_the_dotted_line_is_over_the_examples_of_its_axis(findings):
    of_one = findings.sequences["one"]
    (dotted,) = [
        line
        for line in draw_figure("sequences", findings).axes[0].get_lines()
        if line.get_label() == "sum of single rows"
    ]
    of_run = of_one.steps[of_one.steps.run == "none"]
    expected = of_run.groupby("step").heldout_sum_of_single.mean()
    np.testing.assert_allclose(dotted.get_ydata(), expected)
    assert not np.allclose(expected, of_run.groupby("step").sum_of_single.mean())


@pytest.mark.parametrize("orders", [3, 5])
def test_few_orders_have_a_spread_and_no_rank_correlation(tmp_path, orders):
    inputs = write_tables(tmp_path) | {"sequences": write_sequences(tmp_path, orders=orders)}
    headlines = sequence_headlines(read_findings(inputs, ["one", "two"], TASKS).sequences["one"])
    assert "; a rank correlation needs at least 6 orders. The orders span " in headlines[-1]


@pytest.mark.usefixtures("figures_drawn_before")
def test_right_answers_lost_are_not_called_nats(tmp_path):
    written = write_sequences(tmp_path, exact=True)
    inputs = write_tables(tmp_path) | {"sequences": written}
    of_one = read_findings(inputs, ["one", "two"], TASKS).sequences["one"]
    assert of_one.upstream_unit == "exact_match"
    headlines = sequence_headlines(of_one)
    assert "of the right held-out upstream answers are lost (sd" in headlines[0]
    assert not any("nats" in sentence for sentence in headlines)
    findings = read_findings(inputs, ["one", "two"], TASKS)
    page = render_page(findings, {}, {"experiment": "x", "completion": {"threshold": 0.5}})
    heading = "held-out forgetting, worst domain, mean rise and drift as the share of right answers"
    assert f"in nats; {heading} lost</h3>" in page
    assert "<th>share of rises</th><th>mean rise</th><th>drift</th><th>ACC</th>" in page
    line = of_one.lines()[0]
    assert line["heldout_forgetting"] == of_one.value("none", "heldout_forgetting")["mean"]


@pytest.mark.usefixtures("figures_drawn_before")
def test_the_page_has_a_section_where_there_are_sequences(findings, tmp_path):
    settings = {"experiment": "x", "completion": {"threshold": 0.5}}
    page = render_page(findings, {}, settings)
    assert '<h2 id="sequences">Sequences of tasks</h2>' in page
    assert "<h3>one: means over orders" in page and "<h3>two: means over orders" not in page
    other = read_findings(write_tables(tmp_path), ["one", "two"], TASKS)
    assert 'id="sequences"' not in render_page(other, {}, settings)


def test_the_figure_has_two_panels_per_model(findings):
    figure = draw_figure("sequences", findings)
    assert len(figure.axes) == 2
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["no replay", "Gaussian", "sum of single rows"]
