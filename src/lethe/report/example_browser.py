"""The example browser of the report: all upstream examples, to search, sort and link to.

The table is DataTables, which comes inside the package itables, so the page needs no network. Bokeh
and Plotly draw tables too, but theirs are no HTML tables, which can be printed and read aloud, and
they are two and eight times as large. The page's own scripts only fill the table, follow links
(example_browser.js) and show one example (example_page.js).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from lethe.data.examples import UpstreamExample
from lethe.matrix.forgetting_matrix import Matrix
from lethe.report.example_page import content_text, ids_with_tokens, token_content
from lethe.report.findings import Findings
from lethe.report.page_scripts import hash_script, script_data
from lethe.statistics import finite_means

# Of more examples than three times this number, only some are shown.
MOST_OF_A_KIND = 1000
# Components of Z in which examples are compared, and similar examples per example.
_RANK = 5
_NEIGHBOURS = 5
_DIGITS = 4


@dataclass(frozen=True)
class ExampleBrowser:
    """The values that the page needs to show the browser.

    Attributes
    ----------
    data
        JSON for the script, safe inside an HTML element.
    script
        The library and the page's own script, as one module.
    script_hash
        Hash of the script for the content security policy.
    styles
        Style sheet of the library.
    total, shown
        Number of examples of Z, and of those that the browser shows.
    """

    data: str
    script: str
    script_hash: str
    styles: str
    total: int
    shown: int


def make_browser(findings: Findings, shown: Sequence[int], threshold: float) -> ExampleBrowser:
    """Prepares the browser.

    Parameters
    ----------
    shown
        Columns of Z that the page shows, from `choose_shown`.
    threshold
        Nats. An example counts as forgotten in a task if its loss rose by more.
    """
    script = _module()
    content = browser_data(findings, shown, threshold)
    return ExampleBrowser(
        data=script_data(content),
        script=script,
        script_hash=hash_script(script),
        styles=_library("dt_bundle.css"),
        total=len(next(iter(findings.matrices.values())).example_ids),
        shown=len(shown),
    )


def browser_data(findings: Findings, shown: Sequence[int], threshold: float) -> dict[str, Any]:
    """Examples, tasks and forgetting, as JSON values.

    Returns
    -------
    `examples` (n): id, domain, split and text. By model, `forgetting` (n x tasks), `base_loss` (n)
    and `neighbours` (n x at most 5, positions in `examples`). Missing values are None.
    """
    matrices = findings.matrices
    ids = next(iter(matrices.values())).example_ids
    examples = [_describe(ids[number], findings) for number in shown]
    content: dict[str, Any] = {
        "unit": findings.unit,
        "threshold": threshold,
        "tasks": {model: z.tasks for model, z in matrices.items()},
        "examples": examples,
        "forgetting": {},
        "base_loss": {},
        "neighbours": {},
        "tokens": token_content(findings.tokens),
        "training": findings.training,
    }
    for model, z in matrices.items():
        columns = z.values[:, shown]
        content["forgetting"][model] = [_rounded(column) for column in columns.T]
        content["neighbours"][model] = find_neighbours(compared_rows(z, findings), shown)
        if model in findings.base_losses:
            losses = findings.base_losses[model]
            content["base_loss"][model] = _rounded([losses.get(ids[i], np.nan) for i in shown])
    return content


def choose_shown(findings: Findings) -> list[int]:
    """Columns that the browser shows, in their order: all, or the extreme ones and a random part.

    Of many examples it shows those that are forgotten most and least on average over tasks and
    models, a thousand each, those whose tokens the page has, and a thousand others at random.
    """
    matrices = findings.matrices
    ids = next(iter(matrices.values())).example_ids
    total = len(ids)
    if total <= 3 * MOST_OF_A_KIND:
        return list(range(total))
    sums = np.zeros(total)
    for z in matrices.values():
        sums += finite_means(z.values, axis=0)
    order = np.argsort(sums, kind="stable")
    others = order[MOST_OF_A_KIND:-MOST_OF_A_KIND]
    rng = np.random.default_rng(0)
    shown = {*order[:MOST_OF_A_KIND].tolist(), *order[-MOST_OF_A_KIND:].tolist()}
    shown |= set(rng.choice(others, MOST_OF_A_KIND, replace=False).tolist())
    with_tokens = ids_with_tokens(findings.tokens)
    shown |= {number for number, name in enumerate(ids) if name in with_tokens}
    return sorted(shown)


def compared_rows(z: Matrix, findings: Findings) -> np.ndarray:
    """The rows of Z of the training tasks; all rows if fewer than two tasks are for training."""
    training = {name for name, task in findings.tasks.items() if task.split == "train"}
    tasks = [task for task in z.tasks if task in training]
    return z.values if len(tasks) < 2 else z.values[z.rows(tasks)]


def find_neighbours(values: np.ndarray, shown: Sequence[int]) -> list[list[int]]:
    """For each shown column, the positions of those that are forgotten by the same tasks.

    Columns are compared by the cosine of their first five components of Z, without the column
    means.

    Parameters
    ----------
    values
        Z (M, N) with NaN for missing cells.
    shown
        Columns that are compared.
    """
    means = finite_means(values, axis=0)
    centred = np.where(np.isfinite(values), values - means, 0).astype(np.float64)
    _, directions = np.linalg.eigh(centred @ centred.T)
    factors = centred[:, shown].T @ directions[:, ::-1][:, :_RANK]
    sizes = np.linalg.norm(factors, axis=1, keepdims=True)
    factors /= np.maximum(sizes, 1e-12)
    similarity = factors @ factors.T
    np.fill_diagonal(similarity, -np.inf)
    count = min(_NEIGHBOURS, len(shown) - 1)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return nearest.tolist()


def _describe(example_id: str, findings: Findings) -> dict[str, str]:
    """Id, domain, split and text of an example; of an own matrix only the id is known."""
    example = findings.examples.get(example_id)
    if example is None:
        return {"id": example_id, "domain": "", "split": "", "text": ""}
    return {
        "id": example_id,
        "domain": example.domain,
        "split": example.split,
        "text": text_of(example),
    }


def text_of(example: UpstreamExample) -> str:
    """An example as text to read: plain text, or a prompt and its answer."""
    return content_text(example.example)


def _rounded(values: Any) -> list[float | None]:
    rounded = []
    for value in np.asarray(values, dtype=np.float64):
        rounded.append(round(float(value), _DIGITS) if np.isfinite(value) else None)
    return rounded


def _library(name: str) -> str:
    return (resources.files("itables") / "html" / name).read_text("utf-8")


def _module() -> str:
    """The library as a module that hands its table to the page's own script."""
    own = ""
    for name in ("example_page.js", "example_browser.js"):
        own += (resources.files("lethe.report") / name).read_text("utf-8")
    library, exports = re.subn(r"export\s*\{([^}]*)\}", _as_constants, _library("dt_bundle.js"))
    if exports != 1:
        raise RuntimeError("itables' bundle has another form; see lethe.report.example_browser")
    return f"{library}\n{own}".replace("</script", "<\\/script")


def _as_constants(match: re.Match) -> str:
    """The bundle's list of exports as constants: the page holds the module in one piece."""
    names = {}
    for export in match.group(1).split(","):
        inner, _, outer = export.strip().partition(" as ")
        names[outer or inner] = inner
    return f"const DataTable = {names['default']};"
