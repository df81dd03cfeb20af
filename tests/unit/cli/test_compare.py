"""`lethe compare`: forgetting by domain and example, a verdict, and refusals by name."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from helpers import tiny

from lethe.analysis.compare_rows import MeanInterval, compare_rows
from lethe.cli.application import main
from lethe.data.examples import Example, upstream_digest, write_upstream
from lethe.matrix import rows

COUNT = 80
UPSTREAM = tiny.upstream(COUNT)


def card_of(**changes):
    return {"path": "n", "weights": {"model.safetensors": "other"}} | changes


@pytest.fixture
def files(tmp_path):
    """base.parquet, and after.parquet, in which domain a loses .2 and domain b nothing."""
    upstream = [
        replace(UPSTREAM[0], example=Example(text="<script>alert('x')</script> & text")),
        *UPSTREAM[1:],
    ]
    write_upstream(tmp_path / "pool.parquet", upstream)
    rng = np.random.default_rng(0)
    losses = rng.uniform(2, 4, COUNT).astype(np.float32)
    settings = {
        "model": {
            "path": "m",
            "weights": {"model.safetensors": "1"},
            "files": {"config.json": "2"},
        },
        "scoring": {"max_tokens": 24},
        "upstream": upstream_digest(upstream),
    }
    about = {"versions": {"torch": "2.13.0", "device": "cpu"}}
    base = rows.Row(
        example_ids=[example.example_id for example in upstream],
        loss_before=losses,
        loss_after=losses,
        n_tokens=np.full(COUNT, 20, dtype=np.int32),
        settings=settings,
        about=about,
    )
    in_a = np.array([example.domain == "a" for example in upstream])
    rise = rng.normal(0, 0.02, COUNT) + np.where(in_a, 0.2, 0.0)
    after = replace(
        base,
        loss_after=(losses + rise).astype(np.float32),
        settings=settings | {"adapter": {"adapter_model.safetensors": "3"}},
    )
    rows.write_row(tmp_path / "base.parquet", base)
    rows.write_row(tmp_path / "after.parquet", after)
    return tmp_path


def compare(folder, *options):
    names = [
        folder / option if str(option).endswith((".parquet", ".html")) else option
        for option in options
    ]
    return main(["compare", *map(str, names)])


def change(folder, name, **changes):
    """A copy of after.parquet with other content, under another name."""
    row = rows.read_row(folder / "after.parquet")
    rows.write_row(folder / name, replace(row, **changes))


def test_forgetting_by_domain_and_example_with_a_verdict(files, capsys):
    assert compare(files, "base.parquet", "after.parquet") == 0
    text = capsys.readouterr().out
    assert re.search(
        r"after.parquet: forgot \+0.0998 \[\+0.\d+, \+0.\d+\] nats per token on 80 ex", text
    )
    assert "most in a" in text
    assert re.search(r"^a +40 +\+0\.(19|20)", text, re.M)
    assert "most forgotten: a-" in text


def test_the_verdict_is_on_held_out_examples_where_the_pool_is_given(files, capsys):
    assert compare(files, "base.parquet", "after.parquet", "--pool", "pool.parquet", "--json") == 0
    (facts,) = json.loads(capsys.readouterr().out)
    # Every fourth example is held out, and all of those are of domain b.
    assert facts["overall"]["domain"] == "held-out"
    assert facts["overall"]["examples"] == 20
    assert "no change of the mean loss" in facts["verdict"]
    assert [line["domain"] for line in facts["splits"]] == ["heldout", "replayable"]
    assert compare(files, "base.parquet", "after.parquet", "--pool", "pool.parquet") == 0
    text = capsys.readouterr().out
    assert re.findall(r"^(held-?out|replayable) ", text, re.M) == ["held-out", "replayable"]


def test_the_table_of_what_was_lost_is_a_row_that_is_never_overwritten(files, capsys):
    assert compare(files, "base.parquet", "after.parquet", "-o", "lost.parquet") == 0
    row = rows.read_row(files / "lost.parquet")
    base = rows.read_row(files / "base.parquet")
    after = rows.read_row(files / "after.parquet")
    np.testing.assert_array_equal(row.forgetting, after.loss_after - base.loss_after)
    assert row.settings["upstream"] == base.settings["upstream"]
    assert compare(files, "base.parquet", "after.parquet", "-o", "lost.parquet") == 0
    change(files, "other.parquet", loss_after=after.loss_after + 1)
    assert compare(files, "base.parquet", "other.parquet", "-o", "lost.parquet") == 1
    assert "holds another comparison" in capsys.readouterr().err


def test_several_models_are_compared_with_the_first(files, capsys):
    after = rows.read_row(files / "after.parquet")
    base = rows.read_row(files / "base.parquet")
    half = base.loss_before + after.forgetting / 2
    change(files, "replayed.parquet", loss_after=half.astype(np.float32))
    assert compare(files, "base.parquet", "after.parquet", "replayed.parquet", "--json") == 0
    first, second = json.loads(capsys.readouterr().out)
    assert "against_first" not in first
    mean = -first["overall"]["forgetting"] / 2
    assert second["against_first"]["mean"] == pytest.approx(mean, rel=1e-3)
    assert second["against_first"]["high"] < 0


def test_the_page_is_one_file_and_text_from_data_is_text(files):
    options = ["--pool", "pool.parquet", "--html", "lost.html"]
    assert compare(files, "base.parquet", "after.parquet", *options) == 0
    page = (files / "lost.html").read_text("utf-8")
    assert "&lt;script&gt;alert" in page
    assert "<script" not in page
    assert not re.search(r"(src|href)\s*=", page)
    assert "default-src 'none'" in page
    assert "most forgotten examples" in page.lower()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"upstream": "other"}, "measured on another pool than"),
        ({"scoring": {"max_tokens": 12}}, "measured with other settings than .*scoring"),
        ({"model": card_of()}, "against another base model .n. than"),
        ({"quantize": "4bit"}, "measured with other settings than .*quantize"),
    ],
)
def test_another_pool_base_or_setting_is_refused(files, settings, message, capsys):
    row = rows.read_row(files / "after.parquet")
    change(files, "other.parquet", settings=row.settings | settings)
    assert compare(files, "base.parquet", "other.parquet") == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "other.parquet" in error and "base.parquet" in error


def test_files_in_the_wrong_place_are_refused(files, capsys):
    assert compare(files, "after.parquet", "base.parquet") == 1
    assert "holds the losses of a fine-tuned model" in capsys.readouterr().err
    assert compare(files, "base.parquet", "base.parquet") == 1
    assert "losses of the same untouched model" in capsys.readouterr().err
    row = rows.read_row(files / "after.parquet")
    change(files, "tokens.parquet", n_tokens=row.n_tokens + 1)
    assert compare(files, "base.parquet", "tokens.parquet") == 1
    assert "has 21 scored tokens, but 20 in" in capsys.readouterr().err
    change(files, "before.parquet", loss_before=row.loss_before + 1)
    assert compare(files, "base.parquet", "before.parquet") == 1
    assert "against another base model" in capsys.readouterr().err
    write_upstream(files / "pool2.parquet", tiny.upstream(3))
    assert compare(files, "base.parquet", "after.parquet", "--pool", "pool2.parquet") == 1
    assert "measured on another pool than" in capsys.readouterr().err


def test_an_adapter_scored_without_its_base_file_is_compared_by_its_model(files, capsys):
    row = rows.read_row(files / "after.parquet")
    change(files, "single.parquet", loss_before=row.loss_after)
    assert compare(files, "base.parquet", "single.parquet") == 0
    assert "forgot +0.0998" in capsys.readouterr().out
    settings = row.settings | {"model": card_of()}
    change(files, "foreign.parquet", loss_before=row.loss_after, settings=settings)
    assert compare(files, "base.parquet", "foreign.parquet") == 1
    assert "its adapter was scored on n" in capsys.readouterr().err


def test_another_machine_is_noted(files, capsys):
    change(files, "gpu.parquet", about={"versions": {"torch": "2.13.0", "device": "H100"}})
    assert compare(files, "base.parquet", "gpu.parquet") == 0
    assert "measured with another device than the base (H100" in capsys.readouterr().out


def test_examples_and_domains_without_a_loss_are_counted_in_a_note(files, capsys):
    base = rows.read_row(files / "base.parquet")
    row = rows.read_row(files / "after.parquet")
    in_b = np.array([name.startswith("b-") for name in row.example_ids])
    before = np.where(in_b, np.nan, base.loss_before).astype(np.float32)
    n_tokens = np.where(in_b, 0, row.n_tokens).astype(np.int32)
    cut = replace(base, loss_before=before, loss_after=before, n_tokens=n_tokens)
    rows.write_row(files / "cut.parquet", cut)
    after = np.where(in_b, np.nan, row.loss_after).astype(np.float32)
    after[np.flatnonzero(~in_b)[:3]] = np.nan
    change(files, "broken.parquet", loss_before=before, loss_after=after, n_tokens=n_tokens)
    assert compare(files, "cut.parquet", "broken.parquet", "--html", "page.html") == 0
    text = capsys.readouterr().out
    assert "on 37 of 80 examples" in text
    assert re.search(r"^b +0( +-){5}$", text, re.M)
    assert "nan" not in text
    assert (
        "broken.parquet: 40 of 80 examples have no loss (b 40) and are not in the verdict; none of "
        "their tokens is scored" in text
    )
    assert "raise --max-tokens of lethe score" in text
    assert (
        "broken.parquet: 3 of 80 examples have a loss before the fine-tune and none after it (a 3) "
        "and are not in the verdict; the fine-tuned model gives NaN" in text
    )
    page = (files / "page.html").read_text("utf-8")
    assert "<td>b</td><td>0</td><td>-</td>" in page and "nan" not in page
    # Only held-out examples count where the pool is given, and these are of domain b.
    options = ["--pool", "pool.parquet", "--json"]
    assert compare(files, "cut.parquet", "broken.parquet", *options) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert [line["examples"] for line in facts["domains"]] == [0, 0]
    (note,) = facts["notes"]
    assert "20 of 20 held-out examples have no loss (b 20)" in note
    # A base model that gives NaN is another cause.
    change(files, "nan.parquet", loss_before=before, loss_after=after)
    rows.write_row(files / "nan-base.parquet", replace(base, loss_before=before, loss_after=before))
    assert compare(files, "nan-base.parquet", "nan.parquet") == 0
    assert "40 of 80 examples have no finite loss in nan-base.parquet (b 40)" in (
        capsys.readouterr().out
    )


def test_an_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        interval = MeanInterval.of(rng.exponential(1.0, 100))
        inside += interval.low <= 1 <= interval.high
    assert 0.91 < inside / 400 < 0.98
    assert np.isnan(MeanInterval.of(np.array([1.0])).low)
    assert np.isnan(MeanInterval.of(np.array([np.nan])).mean)


def test_a_hundred_thousand_examples_take_little_memory(files):
    import tracemalloc

    count = 100_000
    rng = np.random.default_rng(0)
    losses = rng.uniform(2, 4, count).astype(np.float32)
    base = replace(
        rows.read_row(files / "base.parquet"),
        example_ids=[f"d{i % 9}-{i:06d}" for i in range(count)],
        loss_before=losses,
        loss_after=losses,
        n_tokens=np.full(count, 20, dtype=np.int32),
    )
    after = replace(
        base,
        loss_after=losses + rng.normal(0.1, 0.2, count).astype(np.float32),
        settings=base.settings | {"adapter": {}},
    )
    tracemalloc.start()
    (comparison,) = compare_rows(base, files / "base.parquet", [(files / "a.parquet", after)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
    assert len(comparison.domains) == 9
    assert comparison.overall.forgetting.mean == pytest.approx(0.1, abs=0.005)


def test_a_page_replaces_only_a_page(files, capsys):
    measured = (files / "after.parquet").read_bytes()
    assert compare(files, "base.parquet", "after.parquet", "--html", "after.parquet") == 1
    assert "after.parquet: exists and is no page; choose another name" in capsys.readouterr().err
    assert (files / "after.parquet").read_bytes() == measured
    for _ in range(2):
        assert compare(files, "base.parquet", "after.parquet", "--html", "page.html") == 0
    assert compare(files, "base.parquet", "after.parquet", "--html", str(files)) == 1
    assert "is a folder" in capsys.readouterr().err
