import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lethe.errors import RowError
from lethe.matrix import rows
from lethe.matrix.gathering import gather_row_files, with_identity


def made(count=12, seed=0, **settings) -> rows.Row:
    rng = np.random.default_rng(seed)
    before, after = rng.random((2, count), dtype=np.float32)
    after[3] = before[3] = np.nan
    return rows.Row(
        [f"news-{i:05d}" for i in range(count)],
        before,
        after,
        np.arange(count, dtype=np.int32),
        {"recipe": {"lr": 1e-3, "max_epochs": None}, "upstream": "abc"} | settings,
        {"eval_loss_after": 1.25, "eval_loss_before": float("nan"), "steps": 50},
    )


@pytest.fixture
def path(tmp_path):
    rows.write_row(tmp_path / "sums.parquet", made())
    return tmp_path / "sums.parquet"


def refused(path, part="") -> None:
    with pytest.raises(RowError, match=part) as caught:
        rows.read_row(path)
    assert str(path) in str(caught.value)
    assert "run again" in str(caught.value)


def test_several_rows_of_one_job_come_back_in_their_order(tmp_path):
    several = [made(seed=seed) for seed in range(3)]
    several[1] = replace(several[1], about={"share": 0.5})
    path = tmp_path / "line.parquet"
    rows.write_rows(path, several)
    again = rows.read_rows(path)
    assert len(again) == 3
    for row, other in zip(several, again, strict=True):
        for name in ("loss_before", "loss_after", "n_tokens", "forgetting"):
            np.testing.assert_array_equal(getattr(row, name), getattr(other, name))
        assert (row.example_ids, row.settings) == (other.example_ids, other.settings)
    assert again[1].about == {"share": 0.5}
    with pytest.raises(RowError, match=r"line\.parquet: holds 3 rows of one fine-tune"):
        rows.read_row(path)


def test_a_file_of_one_row_is_a_list_of_one(path):
    (row,) = rows.read_rows(path)
    np.testing.assert_array_equal(row.loss_after, made().loss_after)


@pytest.mark.parametrize("changed", ["loss_after", "row", "about"])
def test_several_rows_of_which_one_was_changed_are_refused(tmp_path, changed):
    path = tmp_path / "line.parquet"
    rows.write_rows(path, [made(seed=seed) for seed in range(3)])
    table = pq.read_table(path)
    metadata = table.schema.metadata
    if changed == "about":
        content = json.loads(metadata[b"lethe"])
        content["rows"][2]["about"]["steps"] = 51
        metadata = {b"lethe": json.dumps(content).encode()}
    else:
        values = table[changed].to_numpy().copy()
        values[20] = values[20] + 1
        index = table.column_names.index(changed)
        table = table.set_column(index, changed, pa.array(values))
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(RowError, match="line.parquet") as caught:
        rows.read_rows(path)
    assert "run again" in str(caught.value)


def test_a_row_comes_back_as_it_was_written(path):
    found, row = rows.read_row(path), made()
    for name in ("loss_before", "loss_after", "n_tokens", "forgetting"):
        np.testing.assert_array_equal(getattr(found, name), getattr(row, name))
        assert getattr(found, name).dtype == getattr(row, name).dtype
    assert (found.example_ids, found.settings) == (row.example_ids, row.settings)
    assert json.dumps(found.about) == json.dumps(row.about)


def test_forgetting_is_the_rise_in_loss_and_nan_stays_nan(path):
    table = pq.read_table(path).to_pandas()
    expected = table.loss_after - table.loss_before
    np.testing.assert_array_equal(table.forgetting, expected)
    assert np.isnan(table.forgetting).tolist() == [i == 3 for i in range(12)]


def test_the_same_row_gives_the_same_bytes(path, tmp_path):
    rows.write_row(tmp_path / "again.parquet", made())
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()


def test_numbers_of_numpy_stay_numbers(tmp_path):
    row = replace(made(), about={"loss": np.float32(0.5), "steps": np.int64(3)})
    rows.write_row(tmp_path / "r", row)
    assert rows.read_row(tmp_path / "r").about == {"loss": 0.5, "steps": 3}


def test_a_selection_is_in_the_order_asked_for():
    chosen = made().select(["news-00005", "news-00001"])
    assert chosen.n_tokens.tolist() == [5, 1]
    assert chosen.loss_after.tolist() == made().loss_after[[5, 1]].tolist()


def test_a_selection_of_examples_that_are_not_there_is_refused():
    with pytest.raises(RowError, match="lacks 1 .*'code-00001'"):
        made().select(["news-00001", "code-00001"])


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_row_is_named(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(path, "not a readable row")


def test_a_missing_row_and_what_is_no_row_are_named(tmp_path):
    refused(tmp_path / "gone.parquet", "not a readable row")
    pq.write_table(pa.table({"example_id": ["a"]}), tmp_path / "other.parquet")
    refused(tmp_path / "other.parquet", r"not a readable row \(a Parquet table of something else\)")


def test_a_flipped_bit_is_named_or_changes_nothing(path):
    content, row = path.read_bytes(), made()
    # A step that is no divisor of anything walks through all parts of the file.
    for place in range(0, len(content) * 8, 211):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = rows.read_row(path)
        except RowError as error:
            assert str(path) in str(error)
            continue
        # Some bits of a parquet file stand for nothing, like the version that wrote it.
        np.testing.assert_array_equal(found.loss_after, row.loss_after)
        np.testing.assert_array_equal(found.loss_before, row.loss_before)
        assert json.dumps([found.settings, found.about]) == json.dumps([row.settings, row.about])
        assert (found.example_ids, found.n_tokens.tolist()) == (row.example_ids, list(range(12)))


@pytest.mark.parametrize("column", ["loss_before", "loss_after", "forgetting", "n_tokens"])
def test_a_hand_edited_number_is_named(path, column):
    table = pq.read_table(path)
    frame = table.to_pandas()
    frame.loc[2, column] += 1
    edited = pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False)
    pq.write_table(edited, path)
    refused(path, "does not match its digest")


def edit_metadata(path, change) -> None:
    table = pq.read_table(path)
    content = json.loads(table.schema.metadata[b"lethe"])
    change(content)
    pq.write_table(table.replace_schema_metadata({b"lethe": json.dumps(content)}), path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["settings"]["recipe"].update(lr=1),
        lambda content: content["about"].update(eval_loss_after=0.1),
        lambda content: content["about"].pop("steps"),
    ],
)
def test_edited_settings_and_facts_are_named(path, change):
    edit_metadata(path, change)
    refused(path, "does not match its digest")


def test_a_row_without_its_digest_is_named(path):
    edit_metadata(path, lambda content: content.pop("digest"))
    refused(path, "not a readable row")


@pytest.mark.parametrize("column", ["forgetting", "loss_after", "example_id"])
def test_a_row_that_lost_a_column_is_named(path, column):
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    refused(path, "not a readable row")


def test_ids_of_another_kind_are_named(path):
    table = pq.read_table(path)
    ids = pa.array([None] * 12, pa.string())
    pq.write_table(table.set_column(0, "example_id", ids), path)
    refused(path, "not a readable row")


def test_a_row_is_written_whole_or_not_at_all(path, monkeypatch):
    before = path.read_bytes()

    def half(table, target, *_, **__):
        target.write_bytes(b"PAR1 half of a ro")
        raise KeyboardInterrupt

    monkeypatch.setattr(rows.pq, "write_table", half)
    with pytest.raises(KeyboardInterrupt):
        rows.write_row(path, made(seed=1))
    assert path.read_bytes() == before
    with pytest.raises(KeyboardInterrupt):
        rows.write_row(path.with_name("new.parquet"), made())
    assert [found.name for found in path.parent.iterdir()] == ["sums.parquet"]


def gather(tmp_path, measured, **options):
    files = {task: tmp_path / f"{task}.parquet" for task in measured}
    for task, row in measured.items():
        rows.write_row(files[task], with_identity(row, "m", task))
    return gather_row_files(files, "m", **options).matrix


def gathered(tmp_path, **others):
    return gather(tmp_path, {"a": made(), "b": made(seed=1)} | others)


def test_rows_of_one_experiment_are_gathered_in_their_order(tmp_path):
    z = gathered(tmp_path, c=made(seed=2))
    assert (z.tasks, z.values.shape) == (["a", "b", "c"], (3, 12))
    np.testing.assert_array_equal(z.values[2], made(seed=2).forgetting)


@pytest.mark.parametrize("of", ["versions", "base_versions"])
def test_a_row_of_another_machine_is_named_unless_that_is_allowed(tmp_path, of):
    """Engine noise can be as large as what is forgotten."""
    usual = {"torch": "2.13.0", "transformers": "5.23.0", "device": "NVIDIA H100", "commit": "a"}

    def by(seed, **changes):
        return replace(made(seed=seed), about={of: usual | changes})

    measured = {"a": by(0), "b": by(1, commit="b"), "c": by(2, device="cpu")}
    with pytest.raises(RowError, match=rf"c\.parquet: {of}\.device: \"cpu\".*H100") as caught:
        gather(tmp_path, measured)
    assert "b.parquet" not in str(caught.value)
    assert "allow_mixed_machines" in str(caught.value)
    assert gather(tmp_path, measured, mixed_machines=True).tasks == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("odd", "part"),
    [
        (made(seed=2, recipe={"lr": 2.0}), "recipe.*2.0"),
        (made(seed=2, upstream="xyz"), "upstream.*xyz.*abc"),
        (made(seed=2, count=11), "example_ids"),
    ],
)
def test_a_row_of_other_settings_or_examples_is_named_and_not_averaged_in(tmp_path, odd, part):
    with pytest.raises(RowError, match=rf"odd\.parquet: .*{part}") as caught:
        gathered(tmp_path, odd=odd)
    assert "a.parquet" not in str(caught.value)


def test_a_flipped_bit_is_an_error_or_changes_nothing(path):
    """Anywhere in the file; a row that reads differently would be averaged in."""
    whole, bytes_ = rows.read_row(path), path.read_bytes()
    rng, noticed = np.random.default_rng(0), 0
    for place in rng.choice(len(bytes_), 120, replace=False).tolist():
        broken = bytearray(bytes_)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        try:
            found = rows.read_row(path)
        except RowError as error:
            assert str(path) in str(error)
            noticed += 1
            continue
        assert (found.example_ids, found.settings) == (whole.example_ids, whole.settings)
        np.testing.assert_array_equal(found.forgetting, whole.forgetting)
        np.testing.assert_array_equal(found.loss_before, whole.loss_before)
    assert noticed > 40


WRITE = """
import resource, signal, sys
sys.path[:0] = sys.argv[2:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.dont_write_bytecode = True
from dataclasses import replace
from lethe.matrix import rows
row = rows.read_row(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
rows.write_row(sys.argv[1], replace(row, loss_after=row.loss_after + 1))
"""


def test_a_disk_that_fills_up_leaves_the_row_that_was_there(path):
    import subprocess
    import sys
    from pathlib import Path

    before = path.read_bytes()
    assert len(before) > 1500
    library = str(Path(rows.__file__).parents[2])
    command = [sys.executable, "-c", WRITE, str(path), library]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "File too large" in done.stderr
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("kept", [True, False])
def test_a_row_of_an_earlier_version_says_no_more_whether_weights_were_kept(tmp_path, kept):
    row = made()
    settings = row.settings | {"recipe": {"steps": 3, "keep_weights": kept}}
    rows.write_row(tmp_path / "row.parquet", replace(row, settings=settings))
    again = rows.read_row(tmp_path / "row.parquet")
    assert again.settings == row.settings | {"recipe": {"steps": 3}}
