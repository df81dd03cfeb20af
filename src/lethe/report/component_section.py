"""The section of the page about the components of Z: their tasks, texts and domains."""

from typing import Any

import pandas as pd

from lethe.report.example_browser import text_of
from lethe.report.example_page import cut_text
from lethe.report.findings import Findings

# Tasks and texts that the page lists at each end; the tables have more.
LISTED_ON_PAGE = 5
MOST_CHARACTERS_OF_TEXT = 120
# A domain is named if its corrected p is below this.
SIGNIFICANT = 0.05
_TITLES = {"highest": "Highest loadings", "lowest": "Lowest loadings"}


def describe_components(findings: Findings) -> dict[str, list[dict[str, Any]]]:
    """The components of each model: `number`, `share` and `ends` with tasks, texts and domains."""
    described: dict[str, list[dict[str, Any]]] = {}
    for model, table in findings.loadings.items():
        described[model] = []
        for number, lines in table.groupby("component", sort=True):
            ends = []
            for end, title in _TITLES.items():
                of_end = lines[(lines.end == end) & (lines.position <= LISTED_ON_PAGE)]
                ends.append(
                    {
                        "title": title,
                        "tasks": of_end[of_end.kind == "task"].to_dict("records"),
                        "examples": _examples(of_end[of_end.kind == "example"], findings),
                        "domains": _domains(findings.domain_tests.get(model), number, end),
                    }
                )
            share = float(lines.share.iloc[0])
            described[model].append({"number": int(number), "share": share, "ends": ends})
    return described


def _examples(lines: pd.DataFrame, findings: Findings) -> list[dict[str, Any]]:
    examples = []
    for line in lines.to_dict("records"):
        example = findings.examples.get(line["name"])
        text = "" if example is None else cut_text(text_of(example), MOST_CHARACTERS_OF_TEXT)
        examples.append(line | {"text": text})
    return examples


def _domains(tests: pd.DataFrame | None, number: Any, end: str) -> list[dict[str, Any]]:
    """The domains that are more frequent at this end than by chance, the surest first."""
    if tests is None:
        return []
    of_end = tests[(tests.component == number) & (tests.end == end) & (tests.q < SIGNIFICANT)]
    return of_end.sort_values("q", kind="stable").to_dict("records")
