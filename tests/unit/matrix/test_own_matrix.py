import json
import pickle
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lethe.errors import LetheError
from lethe.matrix import own_matrix
from lethe.matrix.sanity import check_sanity

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


def read_csv(tmp_path, text, layout, encoding="utf-8"):
    (tmp_path / "z.csv").write_text(text, encoding)
    return own_matrix.read_own_matrix(tmp_path / "z.csv", TASKS, layout)


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        (",task,x,y\n0,a,0,0.5\n1,b,2,\n", "tasks_in_rows"),
        ("Unnamed: 0,task,x,y\n1,a,0,0.5\n2,b,2,\n", "tasks_in_rows"),
        ("index,task,x,y\n0,a,0,0.5\n1,b,2,\n", "tasks_in_rows"),
        ("task,x,y,\na,0,0.5,\nb,2,,\n", "tasks_in_rows"),
        (",task,x,y,\n0,a,0,0.5,\n1,b,2,,\n", "tasks_in_rows"),
        (",example_id,a,b\n0,x,0,2\n1,y,0.5,\n", "tasks_in_columns"),
        ("example_id,a,b,\nx,0,2,\ny,0.5,,\n", "tasks_in_columns"),
    ],
)
def test_line_numbers_and_a_trailing_comma_are_left_out_and_said(tmp_path, text, layout):
    matrix = read_csv(tmp_path, text, layout)
    np.testing.assert_array_equal(matrix.values, [[0, 0.5], [2, np.nan]])
    assert matrix.example_ids == ["x", "y"]
    assert matrix.notes and all("left out column" in note for note in matrix.notes)
    assert set(matrix.notes) <= set(check_sanity(matrix)["warnings"])
    assert own_matrix.infinite_to_nan(matrix).notes == matrix.notes


def test_an_index_that_pandas_stored_in_parquet_is_left_out(tmp_path):
    columns = {"task": TASKS, "x": [0.0, 2.0], "__index_level_0__": [0, 1]}
    pq.write_table(pa.table(columns), tmp_path / "z.parquet")
    matrix = own_matrix.read_own_matrix(tmp_path / "z.parquet", TASKS, "tasks_in_rows")
    assert matrix.example_ids == ["x"]
    assert "'__index_level_0__'" in matrix.notes[0]


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_a_column_without_a_name_that_holds_values_is_refused(tmp_path, name):
    path = tmp_path / "z.csv"
    path.write_text(f"task,{name},x\na,0.25,1\nb,0.5,2\n")
    message = refused(path, TASKS, "tasks_in_rows")
    assert "column 2" in message and "0.25" in message and "name it" in message


def test_an_example_named_index_with_measurements_is_an_example(tmp_path):
    matrix = read_csv(tmp_path, "task,index,x\na,0.1,1\nb,0.2,2\n", "tasks_in_rows")
    assert matrix.example_ids == ["index", "x"] and not matrix.notes


def test_lines_longer_than_a_megabyte_are_read(tmp_path):
    count = 60_000
    ids = [f"upstream-example-{number:08d}" for number in range(count)]
    lines = ["task," + ",".join(ids)]
    for number, task in enumerate(TASKS):
        lines.append(f"{task}," + ",".join([f"0.125{number}"] * count))
    matrix = read_csv(tmp_path, "\n".join(lines) + "\n", "tasks_in_rows")
    assert matrix.values.shape == (2, count) and matrix.example_ids == ids
    assert np.unique(matrix.values).tolist() == pytest.approx([0.125, 0.1251])


def test_integers_far_above_the_first_fraction_do_not_fix_the_type(tmp_path):
    lines = ["a,b"] + ["0,1"] * 400_000 + ["0.5,1"]
    matrix = read_csv(tmp_path, "\n".join(lines) + "\n", "tasks_in_columns")
    assert matrix.values[0, -1] == 0.5 and matrix.values[0, 0] == 0


@pytest.mark.parametrize("kind", ["decimal", "text", "large text", "dictionary", "float16"])
def test_numbers_of_other_types_are_read_as_numbers(tmp_path, kind):
    numbers = {
        "decimal": pa.array([Decimal("0.50"), None], pa.decimal128(8, 2)),
        "text": pa.array([" 0.5", ""], pa.string()),
        "large text": pa.array(["0.5", None], pa.large_string()),
        "dictionary": pa.array(["0.5", None]).dictionary_encode(),
        "float16": pa.array(np.array([0.5, np.nan], dtype=np.float16)),
    }
    table = pa.table({"a": numbers[kind], "b": pa.array([1, 2])})
    pq.write_table(table, tmp_path / "z.parquet")
    matrix = own_matrix.read_own_matrix(tmp_path / "z.parquet", TASKS, "tasks_in_columns")
    np.testing.assert_array_equal(matrix.values, [[0.5, np.nan], [1, 2]])


@pytest.mark.parametrize(
    ("column", "parts"),
    [
        (pa.array(["0.5", "0,5"]), ["'a'", "'0,5'", "string", "row 2"]),
        (pa.array(["0.5", "1_000"]), ["'a'", "'1_000'"]),
        (pa.array([[0.5], [1.0]]), ["'a'", "list", "[0.5]"]),
        (pa.array([0, 1], pa.timestamp("s")), ["'a'", "timestamp"]),
        (pa.array([None, b"0.5"], pa.binary()), ["'a'", "binary"]),
    ],
)
def test_other_content_is_refused_with_column_and_type(tmp_path, column, parts):
    path = tmp_path / "z.parquet"
    pq.write_table(pa.table({"a": column, "b": pa.array([1, 2])}), path)
    message = refused(path, TASKS, "tasks_in_columns")
    assert all(part in message for part in [*parts, str(path)])


def test_true_and_false_are_one_and_zero(tmp_path):
    matrix = read_csv(tmp_path, "a,b\ntrue,False\nfalse,TRUE\n", "tasks_in_columns")
    np.testing.assert_array_equal(matrix.values, [[1, 0], [0, 1]])


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    matrix = read_csv(tmp_path, "task,x\na,1\nb,2\n", "tasks_in_rows", encoding="utf-8-sig")
    assert matrix.example_ids == ["x"]
    np.save(tmp_path / "z.npy", Z)
    (tmp_path / "names.txt").write_text("x\ny\nz\n", encoding="utf-8-sig")
    named = own_matrix.read_own_matrix(
        tmp_path / "z.npy", TASKS, "tasks_in_rows", tmp_path / "names.txt"
    )
    assert named.example_ids == ["x", "y", "z"]


def test_a_meta_file_with_a_byte_order_mark_is_read(tmp_path):
    path, meta = released(tmp_path, np.zeros((3, 2)), META)
    meta.write_text(meta.read_text(), encoding="utf-8-sig")
    assert own_matrix.read_named_matrix(path, meta, ["c"]).tasks == ["c"]


def test_a_cell_that_is_no_number_is_named_with_its_line(tmp_path):
    path = tmp_path / "z.csv"
    path.write_text("example_id,a,b\nx,1,2\ny,1,n/a?\n")
    assert "line 3: column 'b' holds 'n/a?'" in refused(path, TASKS, "tasks_in_columns")


def test_text_cells_change_nothing_about_names_and_empty_columns(tmp_path):
    """One cell of another type makes the reader convert cell by cell."""
    text = ",example_id,a,b,\n0,NA,true,0.5,\n1,null,,NaN,\n"
    matrix = read_csv(tmp_path, text, "tasks_in_columns")
    assert matrix.example_ids == ["NA", "null"] and len(matrix.notes) == 2
    np.testing.assert_array_equal(matrix.values, [[1, np.nan], [0.5, np.nan]])


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_table_with_other_separators_is_named_as_such(tmp_path, separator):
    path = tmp_path / "z.csv"
    path.write_text("task,x\na,1\nb,2\n".replace(",", separator))
    assert "separated by" in refused(path, TASKS, "tasks_in_rows")


@pytest.mark.parametrize("kind", ["npy", "csv", "parquet"])
def test_a_pointer_of_git_lfs_is_no_matrix(tmp_path, kind):
    path = tmp_path / f"z.{kind}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 42\n")
    with pytest.raises(LetheError, match=rf"z\.{kind}: this is a Git LFS pointer"):
        own_matrix.read_own_matrix(path, ["a"], "tasks_in_rows")
