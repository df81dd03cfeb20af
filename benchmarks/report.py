"""Size of the report, time to build it, and time until it can be read, for a large Z.

    python benchmarks/report.py                                  # the three sizes with limits
    python benchmarks/report.py --tasks 85 --examples 141871     # one size of your own

Z has rank 5 plus noise, and every example has a text of about 200 characters. Each page is built in
a process of its own, so that its peak memory is its own (Linux), and opened in Debian's Chromium.
The table compares each measurement with its limit. CPU seconds are those of the building process,
and of the page's main thread in the browser. The other times in the browser are wall time, and
mean something on idle cores only.
"""

import argparse
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from lethe.config.task_table import Task  # noqa: E402
from lethe.data.examples import Example, UpstreamExample  # noqa: E402
from lethe.files import write_json  # noqa: E402
from lethe.matrix.forgetting_matrix import Matrix  # noqa: E402
from lethe.report.figure_style import save_figure  # noqa: E402
from lethe.report.findings import Findings  # noqa: E402
from lethe.report.plots import draw_figure  # noqa: E402
from lethe.report.report_page import render_page  # noqa: E402

RANK = 5
DOMAINS = ("news", "code", "dialogue", "reviews", "wiki", "forum", "books")
WORDS = ("model", "keeps", "loses", "text", "length", "domain", "token", "of", "the", "task")
METRICS = ("rmse", "mae", "spearman", "top_1_percent", "top_10_percent", "f1", "auc", "coverage_90")
SIZES = ((29, 1024), (85, 141_871), (500, 1000))
# The limits of each size: megabytes of the page, CPU seconds and megabytes of memory to build it,
# and CPU seconds until the table and the heat map can be read.
LIMITS = {
    (29, 1024): {"page_mb": 5, "first_view_cpu_seconds": 2},
    (85, 141_871): {
        "page_mb": 20,
        "cpu_seconds": 60,
        "memory_mb": 2000,
        "first_view_cpu_seconds": 3,
    },
    (500, 1000): {"page_mb": 20, "cpu_seconds": 60, "memory_mb": 2000, "first_view_cpu_seconds": 3},
}
SETTINGS = {"experiment": "synthetic", "completion": {"threshold": 0.1}}


def make_z(tasks: int, examples: int) -> Matrix:
    """A Z of rank 5 plus example means and noise, in nats."""
    rng = np.random.default_rng(0)
    loadings = rng.standard_normal((tasks, RANK), dtype=np.float32)
    factors = rng.standard_normal((RANK, examples), dtype=np.float32)
    values = 0.05 * loadings @ factors + 0.1 * rng.standard_normal(examples, dtype=np.float32)
    values += 0.2 + 0.05 * rng.standard_normal((tasks, examples), dtype=np.float32)
    names = [f"task_{number:03d}" for number in range(tasks)]
    return Matrix(values, names, [f"example-{number:06d}" for number in range(examples)])


def make_findings(tasks: int, examples: int) -> Findings:
    """Findings of one model, with texts, and with scores that stand for those of a run."""
    rng = np.random.default_rng(1)
    z = make_z(tasks, examples)
    upstream = []
    for number, example_id in enumerate(z.example_ids):
        text = " ".join(rng.choice(WORDS, 40))
        domain = DOMAINS[number % len(DOMAINS)]
        upstream.append(UpstreamExample(example_id, domain, "heldout", Example(text=text)))
    table = {}
    for number, name in enumerate(z.tasks):
        split = "test" if number % 4 == 0 else "train"
        table[name] = Task(name=name, group=f"group_{number // 5}", split=split)
    scores = []
    for method in ("random", "additive", "gaussian"):
        for k in (5, 10, 30, 100):
            for metric in METRICS:
                line = {"split": "in_domain", "method": method, "k": k, "probes": "random"}
                line |= {"seed": "all", "metric": metric, "value": 0.5, "low": 0.4, "high": 0.6}
                scores.append(line | {"sd_over_seeds": 0.01})
    curve = [{"predictor": "column_mean", "rank": 0, "r2": 0.2, "singular_value": np.nan}]
    curve += [{"predictor": "row_mean", "rank": 0, "r2": 0.3, "singular_value": np.nan}]
    curve += [{"predictor": "additive", "rank": 0, "r2": 0.4, "singular_value": np.nan}]
    for rank in range(1, 11):
        curve.append(
            {"predictor": "svd", "rank": rank, "r2": 0.1 * rank, "singular_value": 1 / rank}
        )
    base_losses = dict(zip(z.example_ids, rng.uniform(2, 4, examples), strict=True))
    return Findings(
        tasks=table,
        matrices={"synthetic": z},
        curves={"synthetic": pd.DataFrame(curve)},
        completions={"synthetic": pd.DataFrame(scores)},
        base_losses={"synthetic": base_losses},
        upstream=upstream,
    )


def build(tasks: int, examples: int, path: Path, sender: Any) -> None:
    """Draws the heat map for papers, writes the page, and reports CPU seconds and peak memory.

    Making the findings is not part of the time, but of the memory.
    """
    findings = make_findings(tasks, examples)
    start = time.process_time()
    picture = path.with_suffix(".png")
    save_figure(draw_figure("heatmap", findings), picture)
    path.write_text(render_page(findings, {"heatmap": picture.read_bytes()}, SETTINGS), "utf-8")
    seconds = time.process_time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sender.send({"cpu_seconds": seconds, "memory_mb": memory})


def view(path: Path, picture: Path | None) -> dict[str, float]:
    """Opens the page; seconds until the table and the heat map are there, and of a filter."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        # As root, Chromium starts without its sandbox only.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        # Thread ticks count the CPU time of the page's main thread, so other work does not matter.
        metrics = page.context.new_cdp_session(page)
        metrics.send("Performance.enable", {"timeDomain": "threadTicks"})
        start = time.perf_counter()
        page.goto(f"file://{path}", wait_until="commit")
        page.wait_for_selector("#browser-table tbody tr")
        page.wait_for_selector("#heat-map-figure .bk-Column", state="attached")
        first_view = time.perf_counter() - start
        first_view_cpu = main_thread_seconds(metrics)
        page.wait_for_selector("html[data-figures=ready]", timeout=120_000)
        everything = main_thread_seconds(metrics)
        start = time.perf_counter()
        page.locator("#browser-domain").select_option("code")
        page.wait_for_function(
            "[...document.querySelectorAll('#browser-table tbody td:nth-child(2)')]"
            ".every(cell => cell.textContent === 'code')"
        )
        filtered = time.perf_counter() - start
        start = time.perf_counter()
        page.locator("#heat-map-columns").select_option("mean")
        page.evaluate("new Promise(resume => requestAnimationFrame(() => setTimeout(resume)))")
        ordered = time.perf_counter() - start
        if picture is not None:
            page.locator("#heat-map-columns").select_option("domain")
            page.locator("#heat-map-section").screenshot(path=picture)
        browser.close()
    return {
        "first_view_seconds": first_view,
        "first_view_cpu_seconds": first_view_cpu,
        "all_figures_cpu_seconds": everything,
        "filter_seconds": filtered,
        "order_seconds": ordered,
    }


def main_thread_seconds(metrics: Any) -> float:
    """CPU seconds of the page's tasks so far."""
    records = metrics.send("Performance.getMetrics")["metrics"]
    return {record["name"]: record["value"] for record in records}["TaskDuration"]


def measure(tasks: int, examples: int, folder: Path, pictures: Path | None) -> dict[str, Any]:
    """Builds and opens the page of one size."""
    path = folder / f"report-{tasks}-{examples}.html"
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=build, args=(tasks, examples, path, sender))
    process.start()
    # The other end is the process's alone, so that its failure ends the wait.
    sender.close()
    measured = receiver.recv()
    process.join()
    picture = pictures / f"heat-map-{tasks}-{examples}.png" if pictures else None
    size = {"tasks": tasks, "examples": examples, "page_mb": path.stat().st_size / 1e6}
    return size | measured | view(path, picture)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int)
    parser.add_argument("--examples", type=int)
    parser.add_argument("--json", type=Path, help="file for the measurements")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of the heat maps")
    arguments = parser.parse_args()
    sizes = SIZES
    if arguments.tasks and arguments.examples:
        sizes = ((arguments.tasks, arguments.examples),)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for tasks, examples in sizes:
            record = measure(tasks, examples, Path(folder), arguments.pictures)
            records.append(record)
            print(f"{tasks} tasks x {examples} examples")
            limits = LIMITS.get((tasks, examples), {})
            for name, value in record.items():
                limit = limits.get(name)
                part = "" if limit is None else f"   {value / limit:5.2f} of the limit {limit}"
                if name not in ("tasks", "examples"):
                    print(f"  {name:22} {value:8.2f}{part}")
    if arguments.json:
        write_json(arguments.json, records)


if __name__ == "__main__":
    main()
