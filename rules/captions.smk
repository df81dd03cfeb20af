# How figures and tables are listed in Snakemake's own report (`snakemake --report`).

# Snakemake sorts categories by name, so the numbers keep them in the order of the story.
OVERVIEW = "1 Overview"
FORGOTTEN = "2 What was forgotten"
PREDICTED = "3 What can be predicted"
PREVENTED = "4 What prevents it"
IN_SEQUENCES = "5 Sequences of tasks"
COST = "6 Cost"
FIGURE_CATEGORIES = {
    "overview": OVERVIEW,
    "completion": PREDICTED,
    "precision": PREDICTED,
    "replay": PREVENTED,
    "sequences": IN_SEQUENCES,
}


def listed(path, category, kind):
    """A file for Snakemake's report, with its labels and the caption of the same name."""
    name = Path(path).stem
    labels = {
        "result": name.replace("_", " "),
        "kind": kind,
        "model": "{model}" if "{model}" in path else "all",
    }
    caption = f"../report/{kind}s/{name}.rst"
    return report(path, caption=caption, category=category, labels=labels)


def listed_figure(path):
    """A figure for Snakemake's report."""
    category = FIGURE_CATEGORIES.get(Path(path).stem, FORGOTTEN)
    return listed(path, category, "figure")


def listed_table(path, category):
    """A table for Snakemake's report."""
    return listed(path, category, "table")


def listed_tables(tables, category):
    """Tables by output name, all for the same category of Snakemake's report."""
    return {name: listed_table(path, category) for name, path in tables.items()}
