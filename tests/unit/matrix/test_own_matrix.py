import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lethe.errors import LetheError
from lethe.matrix import own_matrix

TASKS = ["a", "b"]
Z = np.array([[0.0, 0.5, 1.0], [2.0, np.nan, -1.0]], dtype=np.float32)


def refused(*arguments, **options):
    with pytest.raises(LetheError) as caught:
        own_matrix.read_own_matrix(*arguments, **options)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "rows.npy", Z)
    np.save(tmp_path / "columns.npy", Z.T)
    (tmp_path / "rows.csv").write_text("task,x,y,z\nb,2,nan,-1\na,0,0.5,1\n")
    (tmp_path / "columns.csv").write_text("b,example_id,a\n2,x,0\n,y,0.5\n-1,z,1\n")
    for name in ("rows", "columns"):
        table = pa.csv.read_csv(tmp_path / f"{name}.csv")
        pq.write_table(table, tmp_path / f"{name}.parquet")
    (tmp_path / "names.txt").write_text("x\ny\nz\n")
    return tmp_path


@pytest.mark.parametrize("layout", ["tasks_in_rows", "tasks_in_columns"])
@pytest.mark.parametrize("kind", ["npy", "csv", "parquet"])
def test_every_kind_and_layout_gives_the_same_matrix(folder, kind, layout):
    names = folder / "names.txt" if kind == "npy" else None
    path = folder / f"{layout.removeprefix('tasks_in_')}.{kind}"
    found = own_matrix.read_own_matrix(path, TASKS, layout, names)
    np.testing.assert_array_equal(found.values, Z)
    assert found.tasks == TASKS and found.example_ids == ["x", "y", "z"]


def test_examples_without_names_are_numbered(folder):
    found = own_matrix.read_own_matrix(folder / "rows.npy", TASKS, "tasks_in_rows")
    assert found.example_ids == ["example-000000", "example-000001", "example-000002"]


def test_a_transposed_array_is_refused_and_told_which_layout_fits(folder):
    np.save(folder / "z.npy", np.zeros((1547, 85), dtype=np.float32))
    tasks = [f"t{i}" for i in range(85)]
    message = refused(folder / "z.npy", tasks, "tasks_in_rows")
    assert "(1547, 85)" in message and "85 lines" in message
    assert "use layout: tasks_in_columns" in message
    message = refused(folder / "z.npy", tasks[:80], "tasks_in_rows")
    assert "expected (80, N)" in message and "use layout" not in message


def test_a_table_with_its_tasks_in_lines_is_told_so(folder):
    message = refused(folder / "rows.csv", TASKS, "tasks_in_columns")
    assert "Missing: 'a', 'b'" in message and "use layout: tasks_in_rows" in message
    assert "'task'" in refused(folder / "columns.csv", TASKS, "tasks_in_rows")


def test_pickled_objects_are_refused_without_being_loaded(folder):
    class Trap:
        def __reduce__(self):
            return (open, (str(folder / "sprung"), "w"))

    np.save(folder / "object.npy", np.array([[Trap()]], dtype=object), allow_pickle=True)
    (folder / "pickle.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("object.npy", "pickle.npy"):
        message = refused(folder / name, TASKS, "tasks_in_rows")
        assert "pickled" in message and "never loaded" in message and name in message
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda p: np.save(p, np.array([["x"], ["y"]])), ["<U1", "numbers"]),
        (lambda p: np.save(p, np.zeros(3)), ["(3,)", "(2, N)"]),
        (lambda p: np.save(p, np.zeros((2, 0))), ["(2, 0)"]),
        (lambda p: p.write_bytes(b""), ["not a readable .npy"]),
        (lambda p: p.write_bytes(_archive(p)), [".npz archive"]),
        (lambda p: p.write_bytes(b"0.1,0.2\n0.3,0.4\n"), ["is no .npy file", "b'0.1,0.2"]),
        (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), ["git lfs pull"]),
    ],
    ids=["text", "one dimension", "empty", "truncated", "archive", "csv", "git lfs"],
)
def test_an_array_that_is_no_matrix_of_numbers_is_refused(tmp_path, make, parts):
    path = tmp_path / "z.npy"
    make(path)
    message = refused(path, TASKS, "tasks_in_rows")
    assert all(part in message for part in [*parts, str(path)])
    assert "pickle" not in message


def _archive(path):
    np.savez(path.with_suffix(".npz"), z=Z)
    return path.with_suffix(".npz").read_bytes()


@pytest.mark.parametrize(
    ("text", "layout", "parts"),
    [
        ("a,b\n1,low\n", "tasks_in_columns", ["'b'", "'low'", "numbers"]),
        ("a,b,c\n1,2,3\n", "tasks_in_columns", ["not in the task table: 'c'"]),
        ("a\n1\n", "tasks_in_columns", ["Missing: 'b'"]),
        ("a,a,b\n1,2,3\n", "tasks_in_columns", ["'a'", "twice"]),
        ("a,b,example_id\n1,2,x\n1,3,x\n", "tasks_in_columns", ["'x'", "twice"]),
        ("a,b,example_id\n1,2,x\n1,3,\n", "tasks_in_columns", ["line 3", "empty"]),
        ("a,b\n", "tasks_in_columns", ["no line"]),
        ("a,b\n1,2\n3\n", "tasks_in_columns", ["not a readable csv"]),
        ("task,x\na,1\na,2\nb,1\n", "tasks_in_rows", ["'a'", "twice"]),
        ("task\na\nb\n", "tasks_in_rows", ["no example"]),
    ],
)
def test_a_bad_table_is_refused_with_what_was_found(tmp_path, text, layout, parts):
    path = tmp_path / "z.csv"
    path.write_text(text)
    message = refused(path, TASKS, layout)
    assert all(part in message for part in [*parts, str(path)])


def test_ids_that_look_like_numbers_keep_their_zeros(tmp_path):
    (tmp_path / "z.csv").write_text("example_id,a,b\n001,1,2\n1,3,4\n")
    found = own_matrix.read_own_matrix(tmp_path / "z.csv", TASKS, "tasks_in_columns")
    assert found.example_ids == ["001", "1"]


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        ("x\ny\n", ["2 ids", "expected 3"]),
        ("x\n\nz\n", ["line 2", "empty"]),
        ("x\nx\nz\n", ["twice", "'x'"]),
    ],
)
def test_a_names_file_that_does_not_fit_is_refused(folder, names, parts):
    (folder / "names.txt").write_text(names)
    message = refused(folder / "rows.npy", TASKS, "tasks_in_rows", folder / "names.txt")
    assert all(part in message for part in parts)


def test_names_are_given_once(folder):
    names = folder / "names.txt"
    assert "itself" in refused(folder / "columns.csv", TASKS, "tasks_in_columns", names)


def test_the_layout_and_the_kind_of_file_must_be_known(folder):
    assert "'rows'" in refused(folder / "rows.npy", TASKS, "rows")
    assert "'.txt'" in refused(folder / "names.txt", TASKS, "tasks_in_rows")


def test_infinite_cells_are_kept_for_the_report_and_masked_for_use(folder):
    np.save(folder / "z.npy", np.array([[np.inf, 1e300], [1.0, -np.inf]]))
    found = own_matrix.read_own_matrix(folder / "z.npy", TASKS, "tasks_in_rows")
    assert np.isinf(found.values).sum() == 3
    masked = own_matrix.infinite_to_nan(found)
    assert np.isnan(masked.values).sum() == 3 and masked.values[1, 0] == 1


META = {
    "tulu": {"start": 2, "stop": 3, "tasks": ["c"]},
    "flan": {"start": 0, "stop": 2, "tasks": ["a", "b"]},
}


def released(folder, values, meta):
    np.save(folder / "m.npy", values)
    (folder / "m.meta").write_text(meta if isinstance(meta, str) else json.dumps(meta))
    return folder / "m.npy", folder / "m.meta"


def test_a_matrix_with_its_rows_named_beside_it_gives_the_tables_tasks(tmp_path):
    values = np.array([[0, 0.5], [2, -100], [1, -10000]])
    found = own_matrix.read_named_matrix(*released(tmp_path, values, META), ["c", "a"])
    np.testing.assert_array_equal(found.values, np.float32([[1, np.nan], [0, 0.5]]))
    assert found.tasks == ["c", "a"] and found.example_ids[1] == "example-000001"


def test_names_with_spaces_are_those_of_a_table_with_underscores(tmp_path):
    tasks = ["Indexical Error", "Nutrition", "nutrition"]
    meta = {"truthful_qa": {"start": 0, "stop": 3, "tasks": tasks}}
    files = released(tmp_path, np.arange(6.0).reshape(3, 2), meta)
    found = own_matrix.read_named_matrix(*files, ["nutrition", "Indexical_Error"])
    np.testing.assert_array_equal(found.values, [[4, 5], [0, 1]])


@pytest.mark.parametrize(
    ("meta", "told"),
    [
        ("no json", "not readable as JSON"),
        ("[1]", "not readable as JSON of collection"),
        ({"flan": {"start": 0, "stop": 3}}, "KeyError"),
        ({**META, "tulu": {"start": 1, "stop": 2, "tasks": ["c"]}}, "expected it to start at 2"),
        ({**META, "tulu": {"start": 2, "stop": 4, "tasks": ["c"]}}, "rows 2 to 4 and 1 tasks"),
        ({**META, "tulu": {"start": 2, "stop": 3, "tasks": ["a"]}}, "'a' stand twice"),
        ({**META, "more": {"start": 3, "stop": 4, "tasks": ["d"]}}, "4 rows that"),
    ],
)
def test_names_that_do_not_fit_the_rows_are_refused(tmp_path, meta, told):
    with pytest.raises(LetheError, match=told):
        own_matrix.read_named_matrix(*released(tmp_path, np.zeros((3, 2)), meta), ["a"])


def test_a_task_that_a_named_matrix_lacks_is_told(tmp_path):
    with pytest.raises(LetheError, match="no row for 1 of the task table's tasks: 'x'"):
        own_matrix.read_named_matrix(*released(tmp_path, np.zeros((3, 2)), META), ["a", "x"])


def test_a_named_matrix_of_pickles_is_refused(tmp_path):
    files = released(tmp_path, np.array([[{}], [{}], [{}]]), META)
    with pytest.raises(LetheError, match="never loaded"):
        own_matrix.read_named_matrix(*files, ["a"])
