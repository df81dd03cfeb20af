"""One self-contained HTML page on what fine-tuned models have lost."""

from collections.abc import Mapping, Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from lethe.analysis.compare_rows import Comparison
from lethe.data.examples import Example


def render_lost_page(
    comparisons: Sequence[Comparison],
    base: str,
    *,
    domains: Mapping[str, str],
    texts: Mapping[str, Example] | None = None,
    examples: int = 40,
) -> str:
    """Renders the page as HTML. All text from data is escaped, and nothing is fetched.

    Parameters
    ----------
    base
        Name of the file of base losses.
    domains
        Domain by example id.
    texts
        Example by id; None: the page lists ids only.
    examples
        Number of most forgotten examples per model.
    """
    environment = Environment(
        loader=PackageLoader("lethe.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    models = []
    for comparison in comparisons:
        row = comparison.row
        lines = []
        for number in comparison.most_forgotten(examples):
            name = row.example_ids[number]
            lines.append(
                {
                    "example_id": name,
                    "domain": domains[name],
                    "before": float(row.loss_before[number]),
                    "after": float(row.loss_after[number]),
                    "forgetting": float(row.forgetting[number]),
                    "text": None if texts is None else texts.get(name),
                }
            )
        models.append({"comparison": comparison, "examples": lines})
    return environment.get_template("lost.html.j2").render(models=models, base=base)
