"""README and docs: snippets print what they show; links, files and names exist."""

import ast
import contextlib
import importlib
import io
import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import TypeAdapter

import lethe
from lethe.analysis.rises import RunKey
from lethe.config.loading import load_experiment
from lethe.config.schema import Experiment
from lethe.config.yaml_file import read_yaml
from lethe.matrix.rows import Row, write_row
from lethe.replay.runs import GatheredRuns
from lethe.statistics import resampling

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "results/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
# Pages that the build of the site makes.
GENERATED = ("docs/_generated", "docs/reference/api/", "docs/_build")
PAGES = [path for path in PAGES if not path.relative_to(ROOT).as_posix().startswith(GENERATED)]
TUTORIAL = ROOT / "docs/explanation/completion.md"

each_page = pytest.mark.parametrize(
    "page", PAGES, ids=[path.relative_to(ROOT).as_posix() for path in PAGES]
)


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)


def snippets_with_output(page: Path) -> list[tuple[str, str]]:
    """Python blocks that a block of text follows, and that text: the output to expect."""
    pattern = r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$"
    return re.findall(pattern, page.read_text("utf-8"), re.M | re.S)


def run_in_order(snippets: list[tuple[str, str]]) -> tuple[str, dict]:
    """Everything that the snippets of a page print, and the names that they leave."""
    names: dict = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for code, _ in snippets:
            exec(compile(code, "snippet", "exec"), names)
    return printed.getvalue(), names


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if snippets_with_output(page)],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_a_snippet_prints_the_output_that_the_page_shows(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    snippets = snippets_with_output(page)
    printed, _ = run_in_order(snippets)
    assert printed == "".join(output for _, output in snippets)


def test_the_example_of_the_guide_runs_and_predicts_within_its_error_bars():
    _, names = run_in_order(snippets_with_output(TUTORIAL))
    hidden, new = names["hidden"], names["new"]
    error = (names["predicted"] - new)[hidden]
    assert (error**2).mean() < 0.25 * new[hidden].var()
    assert 0.8 < ((names["low"] <= new) & (new <= names["high"])).mean() < 1


@each_page
def test_every_name_that_a_snippet_imports_exists(page):
    for code in blocks(page, "python"):
        imported: dict[str, Any] = {"lethe": lethe}
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("lethe"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")
                    imported[alias.name] = getattr(module, alias.name)
            # A method of an instance cannot be looked up without running the snippet.
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) in imported:
                assert hasattr(imported[node.value.id], node.attr), f"{node.value.id}.{node.attr}"


@each_page
def test_a_name_of_the_library_in_the_text_exists(page):
    for name in sorted(set(re.findall(r"`(lethe(?:\.\w+)+)", page.read_text("utf-8")))):
        parts = name.split(".")
        value = lethe
        for position, part in enumerate(parts[1:], start=2):
            if not hasattr(value, part):
                importlib.import_module(".".join(parts[:position]))
            value = getattr(value, part)


@each_page
def test_a_section_of_an_experiment_is_valid(page):
    for block in blocks(page, "yaml"):
        for key, value in yaml.safe_load(block).items():
            if key in Experiment.model_fields:
                TypeAdapter(Experiment.model_fields[key].annotation).validate_python(value)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@each_page
def test_a_link_leads_to_a_file_and_a_heading(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: {target} does not exist"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


@each_page
def test_a_file_of_the_repository_in_the_text_exists(page):
    """Names like `rules/slurm.smk`; results of runs and places on other machines are not there."""
    folders = "docs|rules|src|tests|experiments|workflow_scripts|benchmarks|profiles|schemas|envs"
    pattern = rf"`((?:{folders})/[\w./-]+\.\w+)`"
    for name in re.findall(pattern, page.read_text("utf-8")):
        assert (ROOT / name).exists(), name


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == lethe.__version__
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= set(citation)
    assert citation["preferred-citation"]["identifiers"][0]["value"] == "arXiv:2406.14026"


def test_a_page_that_another_file_names_exists():
    """In comments of experiments, descriptions of settings and docstrings."""
    folders = ("src", "experiments", "rules", "profiles", "schemas", "workflow_scripts", "report")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in [*paths, ROOT / "config.yaml", ROOT / "Snakefile", ROOT / "Makefile"]:
        made_by_pip = path.parent.suffix == ".egg-info"
        if made_by_pip or path.suffix in (".pyc", ".npy", ".parquet"):
            continue
        for page in re.findall(r"docs/[\w/-]+\.md", path.read_text("utf-8")):
            assert (ROOT / page).exists(), f"{path}: {page}"


def script(name: str):
    """A module of docs/, which is no package; it may import others there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        return importlib.import_module(name)


@pytest.fixture
def results(tmp_path):
    """The tables of one model, with made-up numbers."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "rows.csv").write_text("task,mean_forgetting\na,0.1\nb,0.3\n")
    (folder / "associations.csv").write_text(
        "association,tasks,pearson,pearson_low,pearson_high\ntext_tfidf,all,0.02,-0.1,0.2\n"
    )
    (folder / "completion.csv").write_text(
        "split,method,k,probes,seed,metric,value,low,high\n"
        "in_domain,gaussian,30,random,all,rmse,0.08,0.06,0.09\n"
        "in_domain,column_mean,30,random,all,rmse,0.115,0.1,0.12\n"
    )
    lines = [
        "question,run,reference,measure,mean,reference_mean,difference,low,high,p_holm,"
        "tasks,tasks_lower,largest_difference,largest_difference_task"
    ]
    for question in ("replay", "default", "selection"):
        runs = f"{question},oracle,random,heldout_forgetting"
        lines.append(f"{runs},0.1,0.2,-0.1,-0.15,-0.05,0.0234,8,7,0.01,pig_latin")
    (folder / "replay_contrasts.csv").write_text("\n".join(lines) + "\n")
    name = "heldout_forgetting"
    effect = f"{name}_difference"
    interval = f"{effect},{effect}_low,{effect}_high,{effect}_p_holm"
    (folder / "replay_comparison.csv").write_text(
        f"strategy,{name},{name}_low,{name}_high,eval_loss_after,{interval},random_in_effect,"
        "eval_loss_after_largest_difference,eval_loss_after_largest_difference_task\n"
        "random,0.112,0.1,0.125,4.1,0,0,0,,1,0,a\n"
        "oracle,0.1,0.08,0.11,4.2,-0.012,-0.02,-0.005,0.039,0.25,0.15,b\n"
    )
    (folder / "replay.csv").write_text(
        "strategy,task,seed,eval_loss_after,replayed_token_share\n"
        "random,a,2,4.0,0.5\nrandom,b,2,4.2,0.3\noracle,a,2,4.05,0.4\noracle,b,2,4.35,0.2\n"
    )
    (folder / "replay_advice.csv").write_text(
        "trade,task,run\n0.5,a,random\n0.5,b,oracle\n0.5,c,oracle\n"
    )
    (folder / "replay_advice_score.csv").write_text(
        "trade,reference,expected_cost,cost,reference_cost,difference,low,high,tasks,tasks_lower,p\n"
        "0.5,best on average,-0.1,-0.2,-0.15,-0.05,-0.07,-0.03,8,7,0.0234\n"
    )
    return tmp_path


def test_the_table_of_results_has_every_number_with_its_interval(results, capsys):
    script("results_table").main(results)
    printed = capsys.readouterr().out
    assert "| Forgetting per fine-tune, mean of 29 tasks | 0.200 [0.100, 0.300] |" in printed
    assert "| 0.080 [0.060, 0.090]; column mean 0.115 |" in printed
    assert printed.count("| 0.100 against 0.200: -0.100 [-0.150, -0.050], p 0.023 |") == 2
    assert "| random | 0.112 | 4.100 | - |" in printed
    assert "| oracle | 0.100 | 4.200 | -0.012 [-0.020, -0.005], p 0.039 |" in printed
    assert "| oracle | 0.100 [0.080, 0.110] |" in printed
    effect = (
        "| 0.100 / 0.200 | -0.1000 [-0.1500, -0.0500] | - | 0.023 | 7 of 8 | pig_latin +0.010 |"
    )
    assert printed.count(f"| oracle - random | held-out forgetting {effect}") == 3
    assert "| random | - | 40, 30, 50 | 100 |" in printed
    assert "| oracle | +0.150 b | 30, 20, 40 | 25 |" in printed
    assert "| tiny, new-task loss | random | oracle |" in printed
    assert "| b | 4.200 | 4.350 |" in printed
    advised = "| -0.100 | -0.200 | -0.150 | -0.050 [-0.070, -0.030] | 7 of 8 | 0.023 | oracle (2) |"
    assert f"| 0.5 | best on average {advised}" in printed


# Folder of tables -> the scripts that print it and the page that shows it, if it is not that of an
# experiment's models, which `results_table` prints for the page of the same name.
PRINTED_BY = {
    "keep-chats": (["chat_results"], "keep-chats"),
    "default": (["across_models"], "across-models"),
    "model-sizes": (["across_models"], "across-models"),
    "smollm2": (["results_table", "across_models"], "smollm2"),
    "smollm2-em": (["finer_table"], "finer-than-loss"),
    "importance-step": (["results_table"], "importance"),
    "replay-frontiers": (["frontiers_table"], "replay-frontiers"),
}


def test_a_page_shows_the_tables_that_are_kept_beside_it(capsys):
    for folder in sorted((ROOT / "docs/lab/tables").glob("*")):
        names, page_name = PRINTED_BY.get(folder.name, (["results_table"], folder.name))
        for name in names:
            getattr(script(name), "print_tables" if name == "across_models" else "main")(folder)
        page = (ROOT / f"docs/lab/{page_name}.md").read_text("utf-8")
        for line in capsys.readouterr().out.splitlines():
            assert line in page, f"{folder.name}: {line}"
        for file in folder.rglob("*.parquet"):
            made_by = json.loads(pq.read_schema(file).metadata[b"made_by"])
            assert made_by["settings"]["experiment"] == folder.name
            assert made_by["versions"] and made_by["sha256"]


def test_kept_tables_print_what_the_results_print(results, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script("results_table").main(results)
    expected = capsys.readouterr().out
    shutil.copytree(results / "tiny", tmp_path / "results/made/tiny")
    loss = np.ones(1)
    row = Row(
        example_ids=["a"],
        loss_before=loss,
        loss_after=loss,
        n_tokens=np.array([3]),
        settings={"recipe": {"lr": 1}},
        about={"versions": {"lethe": "0.1.0"}},
    )
    write_row(tmp_path / "results/made/tiny/rows/a.parquet", row)
    Path("made.yaml").write_text("experiment: made\nmodels: {tiny: {}}\n")
    script("collect_tables").main(Path("made.yaml"), tmp_path / "kept")
    shutil.copy(results / "tiny/associations.csv", tmp_path / "kept/tiny")
    script("results_table").main(tmp_path / "kept")
    assert capsys.readouterr().out == expected
    made_by = json.loads(pq.read_schema("kept/tiny/replay_comparison.parquet").metadata[b"made_by"])
    assert made_by["versions"] == [{"lethe": "0.1.0"}] and made_by["files"] == 1


def gathered(measured):
    """The lines of replay.csv with two held-out examples each, that rise by the mean."""
    forgetting = {}
    for line in measured.itertuples():
        key = RunKey(strategy=line.strategy, task=line.task, seed=line.seed)
        forgetting[key] = np.full(2, line.heldout_forgetting)
    return GatheredRuns(measured.to_dict("records"), forgetting, noise_floor=0.0)


@pytest.fixture
def two_sittings(tmp_path, monkeypatch):
    """Kept tables of the replay study without its last run, and what is measured now.

    Measured are that run, one job of `random` again, and one job of another run.
    """
    folder = tmp_path / "pythia-0.6m"
    shutil.copytree(ROOT / "docs/lab/tables/replay-study/pythia-0.6m", folder)
    lines = pd.read_parquet(folder / "replay.parquet")
    last = lines.strategy == "random-prompt-kl-0.05"
    schema = pq.read_schema(folder / "replay.parquet")
    kept = pa.Table.from_pandas(lines[~last], preserve_index=False)
    pq.write_table(kept.replace_schema_metadata(schema.metadata), folder / "replay.parquet")
    again = lines[lines.strategy == "random"].head(1)
    measured = pd.concat([lines[last], again, again.assign(strategy="half-run")])
    module = script("add_replay_runs")
    monkeypatch.setattr(module, "read_jobs", lambda *_, noise_floor: gathered(measured))
    # The predictions that an advice is made from are not kept beside the tables.
    monkeypatch.setattr(module, "advise_all", lambda *_: {})
    # Intervals and p values are not compared, so that few draws do.
    for draws in ("frontier._MANY_DRAWS", "frontier.DRAWS", "two_level.DRAWS"):
        monkeypatch.setattr(f"lethe.replay.{draws}", 1000)
    monkeypatch.setattr("lethe.statistics.resampling", partial(resampling, draws=1000))
    file = ROOT / "experiments/replay-study.yaml"
    replay = load_experiment(read_yaml(file), files=[file]).settings.replay
    return module, replay, folder, measured


def test_finished_runs_are_added_to_kept_tables(two_sittings, capsys):
    module, replay, folder, _ = two_sittings
    module.add_runs(replay, [], Path("upstream.parquet"), folder)
    printed = capsys.readouterr().out
    assert "left out: half-run is not finished (1 of 87 jobs)" in printed
    assert printed.endswith("pythia-0.6m: added random-prompt-kl-0.05\n")
    for name in ("replay", "replay_comparison", "replay_frontier"):
        kept = pd.read_parquet(ROOT / f"docs/lab/tables/replay-study/pythia-0.6m/{name}.parquet")
        made = pd.read_parquet(folder / f"{name}.parquet")
        keys = [key for key in ("strategy", "task", "seed", "frontier", "measure") if key in made]
        columns = [*keys, *made.columns.intersection(["heldout_forgetting", "difference"])]
        pd.testing.assert_frame_equal(
            made[columns].sort_values(keys, ignore_index=True),
            kept[columns].sort_values(keys, ignore_index=True),
        )
    compared = pd.read_parquet(folder / "replay_comparison.parquet").set_index("strategy")
    assert compared.heldout_forgetting_difference_two_level_low.isna().all(), "random is incomplete"
    made_by = json.loads(pq.read_schema(folder / "replay.parquet").metadata[b"made_by"])
    assert made_by["added"][-1]["runs"] == ["random-prompt-kl-0.05"]


def test_runs_whose_jobs_are_all_here_have_intervals_over_tasks_and_examples(two_sittings):
    module, replay, folder, measured = two_sittings
    kept = pd.read_parquet(folder / "replay.parquet")
    everything = pd.concat([measured.head(-2), kept[kept.strategy.isin(["random", "gaussian"])]])
    module.read_jobs = lambda *_, noise_floor: gathered(everything)
    module.add_runs(replay, [], Path("results"), folder)
    low = pd.read_parquet(folder / "replay_comparison.parquet").set_index("strategy")
    low = low.heldout_forgetting_difference_two_level_low
    assert low[["gaussian", "random-prompt-kl-0.05"]].notna().all()
    assert np.isnan(low["domain"])


def test_runs_of_another_base_model_are_not_added(two_sittings):
    module, replay, folder, measured = two_sittings
    before = (folder / "replay.parquet").read_bytes()
    measured.loc[measured.strategy == "random", "eval_loss_after"] += 0.01
    with pytest.raises(SystemExit, match=r"eval_loss_after of strategy random, task .* here"):
        module.add_runs(replay, [], Path("upstream.parquet"), folder)
    measured["seed"] += 10
    with pytest.raises(SystemExit, match="none of its jobs was run again"):
        module.add_runs(replay, [], Path("upstream.parquet"), folder)
    assert (folder / "replay.parquet").read_bytes() == before


def test_the_page_of_the_configuration_has_every_key_of_the_schema():
    schema = Experiment.model_json_schema()
    page = script("generate").configuration(schema)
    for section in [schema, *schema["$defs"].values()]:
        for key in section.get("properties", {}):
            assert f"| `{key}` |" in page
    for name in schema["$defs"]:
        assert f"## {name}\n" in page


def test_the_page_of_the_command_line_shows_its_help():
    assert "Usage: lethe" in script("generate").command_line()


def test_every_fault_on_the_page_of_errors_names_tests_that_exist():
    page = (ROOT / "docs/reference/refusals.md").read_text("utf-8")
    faults = re.findall(r"^\| (?!If \|)(.*) \|$", page, re.MULTILINE)
    assert len(faults) > 100
    for fault in faults:
        *_, cell = re.split(r"(?<!\\)\|", fault)
        tests = re.findall(r"`([\w/]+)::(test_\w+)`", cell)
        assert tests, fault
        for file, name in tests:
            elsewhere = file.startswith(("workflow/", "contract/"))
            folder = ROOT / "tests" if elsewhere else ROOT / "tests/unit"
            assert f"def {name}(" in (folder / f"{file}.py").read_text("utf-8"), (file, name)
