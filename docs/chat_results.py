r"""Prints the tables of docs/lab/keep-chats.md and of the tutorial, in Markdown.

    python benchmarks/keep_chat_model.py MODEL --folder work --tables docs/lab/tables/keep-chats
    python docs/chat_results.py docs/lab/tables/keep-chats docs/lab/keep-chats.md \
        docs/tutorials/keep-a-chat-model.md

In a page, the tables replace the lines between two marks. The first mark names the tables: `all` or
`summary`.

Intervals of 95 percent are percentiles of a bootstrap over texts and seeds together: every draw
takes texts with replacement and seeds with replacement.
"""

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from markdown_table import print_head, print_line

ARMS = {
    "none": "no replay",
    "mix": "random mix",
    "mix_lost": "mix by measured loss",
    "rehearsal": "Rehearsal",
    "prompt": "prompt_kl, 8 positions",
    "prompt_all": "prompt_kl, all positions",
}
METHODS = {"lora": "LoRA", "full": "full fine-tuning"}
DRAWS = 4000
# A rise in loss by this many nats makes each token 10 percent less probable.
CLEAR_RISE = 0.1
BEGIN = "<!-- docs/chat_results.py: {} -->"
END = "<!-- docs/chat_results.py: end -->"


def values_by_seed(
    texts: pd.DataFrame, method: str, arm: str, *, split: str, value: str
) -> pd.DataFrame:
    """Values of an arm's runs: one row per text, one column per seed."""
    part = texts.query("method == @method and arm == @arm and split == @split")
    return part.pivot(index="example_id", columns="seed", values=value).dropna()


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of values (texts, seeds) with the interval of a bootstrap over both."""
    rng = np.random.default_rng(0)
    count, seeds = values.shape
    text_weights = rng.multinomial(count, np.full(count, 1 / count), DRAWS) / count
    seed_weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
    means = np.einsum("dt,ts,ds->d", text_weights, values, seed_weights)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def as_text(values: np.ndarray, sign: str = "+") -> str:
    """Mean and interval, as the tables show them."""
    mean, low, high = interval(values)
    return f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def arms_with_runs(texts: pd.DataFrame, method: str) -> Iterator[str]:
    """The arms of a method that have runs."""
    arms = set(texts.query("method == @method")["arm"])
    return (arm for arm in ARMS if arm in arms)


def shared_seeds(first: pd.DataFrame, second: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The values of two arms on the texts and seeds that both have."""
    rows = first.index.intersection(second.index)
    seeds = first.columns.intersection(second.columns)
    return first.loc[rows, seeds].to_numpy(), second.loc[rows, seeds].to_numpy()


def forgetting_table(texts: pd.DataFrame, method: str) -> None:
    """Rise, drift and divergence on held-out texts, and the loss of new chats."""
    floor = noise_floor(texts, method)
    print_head(
        "",
        "seeds",
        "rise of the loss",
        "mean absolute change",
        "KL to the base",
        f"texts that rise above {floor:.2f} nats",
        "loss of new chats",
        "to no replay",
    )
    for arm in arms_with_runs(texts, method):
        rise = values_by_seed(texts, method, arm, split="heldout", value="rise")
        kl = values_by_seed(texts, method, arm, split="heldout", value="kl")
        new = values_by_seed(texts, method, arm, split="new", value="loss_after")
        without = values_by_seed(texts, method, "none", split="new", value="loss_after")
        losses, losses_without = shared_seeds(new, without)
        above = (rise > floor).to_numpy().mean()
        difference = "" if arm == "none" else as_text(losses - losses_without)
        print_line(
            ARMS[arm],
            str(rise.shape[1]),
            as_text(rise.to_numpy()),
            as_text(rise.abs().to_numpy(), ""),
            as_text(kl.to_numpy(), ""),
            f"{above:.0%}",
            f"{new.to_numpy().mean():.3f}",
            difference,
        )


def noise_floor(texts: pd.DataFrame, method: str) -> float:
    """Two standard deviations of a text's rise between seeds without replay, in nats.

    It is the median over texts, because a few texts with short answers change much more.
    """
    rise = values_by_seed(texts, method, "none", split="heldout", value="rise")
    if rise.shape[1] < 2:
        return CLEAR_RISE
    return 2 * float(rise.std(axis=1, ddof=1).median())


def domain_table(texts: pd.DataFrame, method: str) -> None:
    """Rise on held-out texts by domain."""
    heldout = texts.query("split == 'heldout'")
    domains = sorted(heldout["domain"].unique())
    print_head("", *domains)
    for arm in arms_with_runs(texts, method):
        cells = []
        for domain in domains:
            part = heldout[heldout["domain"] == domain]
            values = values_by_seed(part, method, arm, split="heldout", value="rise").to_numpy()
            cells.append(as_text(values))
        print_line(ARMS[arm], *cells)


def ratios_to_mix(texts: pd.DataFrame, method: str) -> None:
    """Drift of each arm as a share of the random mix's, and the difference of the rise."""
    print_head(
        "", "mean absolute change / random mix's", "KL / random mix's", "rise - random mix's"
    )
    for arm in arms_with_runs(texts, method):
        if arm == "mix":
            continue
        shares = []
        for value in ("change", "kl"):
            drift = values_by_seed(texts, method, arm, split="heldout", value=value)
            drift_of_mix = values_by_seed(texts, method, "mix", split="heldout", value=value)
            values, reference = shared_seeds(drift, drift_of_mix)
            shares.append(share_text(values, reference))
        rise = values_by_seed(texts, method, arm, split="heldout", value="rise")
        rise_of_mix = values_by_seed(texts, method, "mix", split="heldout", value="rise")
        rises, rises_of_mix = shared_seeds(rise, rise_of_mix)
        print_line(ARMS[arm], *shares, as_text(rises - rises_of_mix))


def share_text(values: np.ndarray, reference: np.ndarray) -> str:
    """Ratio of two means with the interval of a bootstrap over the same texts and seeds."""
    rng = np.random.default_rng(0)
    count, seeds = values.shape
    ratios = []
    for _ in range(DRAWS):
        rows = rng.integers(count, size=count)
        columns = rng.integers(seeds, size=seeds)
        cells = np.ix_(rows, columns)
        ratios.append(values[cells].mean() / reference[cells].mean())
    low, high = np.percentile(ratios, [2.5, 97.5])
    return f"{values.mean() / reference.mean():.2f} [{low:.2f}, {high:.2f}]"


def cost_table(texts: pd.DataFrame, runs: pd.DataFrame) -> None:
    """Processor seconds of training and peak memory, beside those without replay."""
    print_head(
        "",
        "",
        "steps",
        "s per step",
        "to no replay",
        "s of training",
        "to no replay",
        "peak memory",
        "to no replay",
    )
    for method, title in METHODS.items():
        for arm in arms_with_runs(texts, method):
            cost = costs(runs, method, arm)
            print_line(
                title,
                ARMS[arm],
                f"{cost['steps']:.0f}",
                f"{cost['per_step']:.2f}",
                f"{cost['step_time']:.2f}",
                f"{cost['seconds']:.0f}",
                f"{cost['time']:.2f}",
                f"{cost['memory']:.1f} GB",
                f"{cost['extra']:+.1f} GB",
            )


def precision_line(folder: Path) -> None:
    """How much the scores in bfloat16 differ from those in float32 for the same model."""
    path = folder / "precision.parquet"
    if not path.exists():
        return
    table = pd.read_parquet(path)
    gap = (table["autocast"] - table["float32"]).dropna()
    print(
        f"Base model in autocast and in float32, {len(gap)} texts: mean difference "
        f"{gap.mean():+.4f}, mean absolute {gap.abs().mean():.4f}, largest {gap.abs().max():.4f}"
    )


def write_into(page: Path, texts: dict[str, str]) -> None:
    """Replaces the lines between the marks of a page by the text that its first mark names.

    Raises
    ------
    SystemExit
        If the page has no marks.
    """
    content = page.read_text("utf-8")
    for name, text in texts.items():
        before, begin, rest = content.partition(BEGIN.format(name))
        _, end, after = rest.partition(END)
        if begin and end:
            page.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}", "utf-8")
            return
    raise SystemExit(f"{page}: has no lines {BEGIN.format('all')} and {END}")


def summary_table(texts: pd.DataFrame, runs: pd.DataFrame) -> None:
    """The main numbers of every arm."""
    print_head(
        "",
        "",
        "seeds",
        "rise of the loss, held out",
        "mean absolute change",
        "KL to the base",
        "loss of new chats",
        "training time",
        "memory",
    )
    for method, title in METHODS.items():
        for arm in arms_with_runs(texts, method):
            rise = values_by_seed(texts, method, arm, split="heldout", value="rise")
            kl = values_by_seed(texts, method, arm, split="heldout", value="kl")
            new = values_by_seed(texts, method, arm, split="new", value="loss_after")
            cost = costs(runs, method, arm)
            print_line(
                title,
                ARMS[arm],
                str(rise.shape[1]),
                as_text(rise.to_numpy()),
                f"{rise.abs().to_numpy().mean():.3f}",
                f"{kl.to_numpy().mean():.3f}",
                f"{new.to_numpy().mean():.3f}",
                f"{cost['time']:.2f}",
                f"{cost['extra']:+.1f} GB",
            )


def costs(runs: pd.DataFrame, method: str, arm: str) -> dict[str, float]:
    """Medians over seeds: processor seconds and memory, beside the run without replay."""
    part = runs[runs["method"] == method]
    without = part[part["arm"] == "none"].set_index("seed")
    lines = part[part["arm"] == arm].set_index("seed")
    lines = lines[lines.index.isin(without.index)]
    without = without.loc[lines.index]
    seconds = lines["train_processor_seconds"]
    per_step = seconds / lines["steps"]
    base = without["train_processor_seconds"]
    memory = lines["peak_gigabytes"]
    values = {
        "steps": lines["steps"],
        "per_step": per_step,
        "step_time": per_step / (base / without["steps"]),
        "seconds": seconds,
        "time": seconds / base,
        "memory": memory,
        "extra": memory - without["peak_gigabytes"],
    }
    return {name: float(column.median()) for name, column in values.items()}


def read_texts(folder: Path) -> pd.DataFrame:
    """Losses by run and text, with the rise, its absolute value and the domain."""
    texts = pd.read_parquet(folder / "texts.parquet")
    texts["rise"] = texts["loss_after"] - texts["loss_before"]
    texts["change"] = texts["rise"].abs()
    texts["domain"] = texts["example_id"].str.rpartition("-")[0]
    return texts


def print_tables(folder: Path) -> None:
    """Prints all tables."""
    texts = read_texts(folder)
    runs = pd.read_parquet(folder / "runs.parquet")
    new = texts[texts["split"] == "new"]
    print(f"Loss of new chats before: {new['loss_before'].mean():.3f}\n")
    for method, title in METHODS.items():
        if not (texts["method"] == method).any():
            continue
        for name, table in (
            ("held-out texts and new chats", forgetting_table),
            ("beside the random mix", ratios_to_mix),
            ("rise by domain", domain_table),
        ):
            print(f"### {title}: {name}\n")
            table(texts, method)
            print()
    print("### Cost\n")
    cost_table(texts, runs)
    print()
    precision_line(folder)


def main(folder: Path, *pages: Path) -> None:
    """Prints the tables, and writes them into pages."""
    summary = io.StringIO()
    everything = io.StringIO()
    with contextlib.redirect_stdout(summary):
        summary_table(read_texts(folder), pd.read_parquet(folder / "runs.parquet"))
    with contextlib.redirect_stdout(everything):
        print_tables(folder)
    print(everything.getvalue())
    for page in pages:
        write_into(page, {"all": everything.getvalue(), "summary": summary.getvalue()})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
