"""The interactive figures of the report: their data, their scripts and the scripts' hashes."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from lethe.report.bokeh_figures import read_library
from lethe.report.findings import Findings
from lethe.report.heat_map_figure import heat_map_data, make_heat_map


@dataclass(frozen=True)
class InteractiveFigures:
    """What the page needs to show the figures.

    Attributes
    ----------
    names
        Names of the figures; the page has an element `<name>-figure` for each.
    data
        JSON for the script, safe inside an HTML element.
    library, script
        Bokeh, and the page's own module.
    hashes
        Hashes of the two for the content security policy.
    """

    names: list[str]
    data: str
    library: str
    script: str
    hashes: list[str]


def make_figures(findings: Findings, shown: Sequence[int]) -> InteractiveFigures:
    """Prepares all figures.

    Parameters
    ----------
    shown
        Columns of Z that the page shows, in the order of the example browser.
    """
    items: dict[str, Any] = {"heat-map": make_heat_map(findings)}
    content = {"heat_map": heat_map_data(findings, shown), "items": items}
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    library = read_library().replace("</script", "<\\/script")
    script = (resources.files("lethe.report") / "figures.js").read_text("utf-8")
    return InteractiveFigures(
        names=list(items),
        # "</script>" in a name would end the element; as an escape it stays text.
        data=text.replace("<", "\\u003c"),
        library=library,
        script=script,
        hashes=[hash_script(library), hash_script(script)],
    )


def hash_script(script: str) -> str:
    """The hash by which a content security policy allows a script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"sha256-{digest}"
