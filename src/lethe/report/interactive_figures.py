"""The interactive figures of the report: their data, their scripts and the scripts' hashes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from lethe.report.bokeh_figures import read_library
from lethe.report.cell_predictions import predict_cells
from lethe.report.findings import Findings
from lethe.report.heat_map_figure import domains_of, heat_map_data, make_heat_map
from lethe.report.page_scripts import hash_script, script_data
from lethe.report.prediction_figures import (
    errors_by_task,
    make_agreement_figure,
    make_prediction_figure,
)
from lethe.report.replay_figures import make_replay_figure


@dataclass(frozen=True)
class InteractiveFigures:
    """The values that the page needs to show the figures.

    Attributes
    ----------
    prediction, replay
        By model, the names of its figures. The page has an element `<name>-figure` for each, and
        for `heat-map` and `agreement`.
    by_task
        By model, how well each task is predicted (`errors_by_task`).
    data
        JSON for the script, safe inside an HTML element.
    library, script
        Bokeh, and the page's own module.
    hashes
        Hashes of the two for the content security policy.
    """

    prediction: dict[str, str]
    replay: dict[str, str]
    by_task: dict[str, list[dict[str, Any]]]
    data: str
    library: str
    script: str
    hashes: list[str]


def make_figures(
    findings: Findings, shown: Sequence[int], frontiers: Mapping[str, Sequence[str]]
) -> InteractiveFigures:
    """Prepares all figures.

    Parameters
    ----------
    shown
        Columns of Z that the page shows, in the order of the example browser.
    frontiers
        Names of the runs of each frontier of random replay.
    """
    measured = {model: z.values[:, shown] for model, z in findings.matrices.items()}
    predicted = {model: predict_cells(values) for model, values in measured.items()}
    items: dict[str, Any] = {
        "heat-map": make_heat_map(findings),
        "agreement": make_agreement_figure(findings),
    }
    prediction = {}
    replay = {}
    by_task = {}
    for number, (model, z) in enumerate(findings.matrices.items()):
        prediction[model] = f"prediction-{number}"
        items[prediction[model]] = make_prediction_figure(
            findings.completions[model],
            findings.unit,
            measured=measured[model],
            predicted=predicted[model],
            domains=domains_of(z, findings, shown),
        )
        by_task[model] = errors_by_task(
            measured[model],
            predicted[model],
            tasks=z.tasks,
            example_ids=[z.example_ids[column] for column in shown],
        )
        if model in findings.runs:
            replay[model] = f"replay-{number}"
            items[replay[model]] = make_replay_figure(
                findings.runs[model], findings.unit, frontiers
            )
    heat_map = heat_map_data(findings, shown, measured=measured, predicted=predicted)
    content = {"heat_map": heat_map, "items": items}
    library = read_library().replace("</script", "<\\/script")
    script = (resources.files("lethe.report") / "figures.js").read_text("utf-8")
    return InteractiveFigures(
        prediction=prediction,
        replay=replay,
        by_task=by_task,
        data=script_data(content),
        library=library,
        script=script,
        hashes=[hash_script(library), hash_script(script)],
    )
