import hashlib
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import tiny

from lethe.data import examples as data
from lethe.data.examples import Example, UpstreamExample
from lethe.errors import LetheError


def documents(count, words=40, name="d"):
    return [
        Example(text=" ".join(f"{name}{number}w{i}" for i in range(words)))
        for number in range(count)
    ]


def test_training_and_evaluation_examples_of_a_task_are_disjoint_and_drawn_anew_by_seed():
    pool = tiny.pairs(60)
    train, held = data.draw_disjoint(pool, train=30, evaluate=8, seed=0, task="t")
    assert (len(train), len(held)) == (30, 8)
    assert not {e.digest() for e in train} & {e.digest() for e in held}
    assert (train, held) == data.draw_disjoint(pool, train=30, evaluate=8, seed=0, task="t")
    assert (train, held) != data.draw_disjoint(pool, train=30, evaluate=8, seed=1, task="t")
    assert (train, held) != data.draw_disjoint(pool, train=30, evaluate=8, seed=0, task="u")


def test_repeated_examples_cannot_be_in_training_and_evaluation_both():
    train, held = data.draw_disjoint(tiny.pairs(20) * 3, train=100, evaluate=50, seed=0, task="t")
    assert (len(train), len(held)) == (16, 4)
    assert not set(train) & set(held)


def test_what_is_left_out_of_a_task_is_counted_aloud(caplog):
    caplog.set_level("INFO")
    data.draw_disjoint(
        [*tiny.pairs(12), Example("no answer", " ")], train=10, evaluate=5, seed=0, task="sums"
    )
    assert "task sums: 12 usable examples (0 repeated, 1 empty)" in caplog.text


def test_a_task_with_too_few_usable_examples_is_refused_with_its_name():
    pool = [*tiny.pairs(9), tiny.pairs(9)[0], Example("no answer", " ")]
    with pytest.raises(LetheError, match=r"'sums' has 9 usable examples \(1 repeated, 1 empty\)"):
        data.draw_disjoint(pool, train=10, evaluate=5, seed=0, task="sums")


def test_chunks_are_slices_that_keep_line_breaks_and_indentation():
    code = "def f(x):\n    if x:\n        return 1\n\n    return  2\nrest"
    result = list(data.chunks([Example(text=code)], 4))
    assert [piece.text for piece in result] == ["def f(x):\n    if x:", "return 1\n\n    return  2"]


def test_a_short_document_is_one_chunk_and_a_rest_is_dropped():
    short, longer = documents(1, 3)[0], documents(1, 11)[0]
    assert list(data.chunks([short], 5)) == [short]
    assert [len(piece.text.split()) for piece in data.chunks([longer], 5)] == [5, 5]
    assert list(data.distinct(data.chunks([Example(text=" \n ")], 5))) == []


def test_pairs_pass_through_chunks_whole():
    pair = Example("a long prompt of many words", "yes")
    assert list(data.chunks([pair], 2)) == [pair]


def test_documents_are_drawn_until_they_hold_the_words():
    drawn = data.draw_documents(documents(50), 200, "0/news")
    assert len(drawn) == 5
    assert drawn == data.draw_documents(documents(50), 200, "0/news")
    assert drawn != data.draw_documents(documents(50), 200, "1/news")


def test_upstream_examples_are_even_over_domains_with_a_share_of_each_held_out():
    domains = {name: documents(10, name=name) for name in ("a", "b", "c")}
    drawn = data.draw_upstream(domains, 50, 0.25, 10, seed=0)
    assert Counter(example.domain for example in drawn) == {"a": 17, "b": 17, "c": 16}
    held = Counter(example.domain for example in drawn if example.split == "heldout")
    assert held == {"a": 4, "b": 4, "c": 4}
    assert len({example.example_id for example in drawn}) == 50
    assert len({example.example.digest() for example in drawn}) == 50
    assert drawn == data.draw_upstream(domains, 50, 0.25, 10, seed=0)
    assert drawn != data.draw_upstream(domains, 50, 0.25, 10, seed=1)


def test_another_domain_changes_no_domain_before_it_but_in_number():
    one = data.draw_upstream({"a": documents(10)}, 10, 0.2, 10, seed=0)
    two = data.draw_upstream(
        {"a": documents(10), "b": documents(10, name="b")}, 20, 0.2, 10, seed=0
    )
    assert two[:10] == one


def test_a_text_in_two_domains_is_never_held_out_in_one_and_replayed_in_the_other():
    shared = documents(12, 10)
    domains = {"a": shared, "b": [*shared, *documents(12, 10, name="b")]}
    drawn = data.draw_upstream(domains, 24, 0.5, 10, seed=0)
    assert len({example.example.digest() for example in drawn}) == 24


def test_a_domain_with_too_few_chunks_is_refused_with_what_to_do():
    with pytest.raises(LetheError, match=r"upstream\.domains\.news: 4 examples.*raise"):
        data.draw_upstream({"news": documents(1)}, 5, 0.25, 10, seed=0)


def test_an_uneven_domain_gives_all_it_has_and_others_no_more_for_it():
    """Tulu's hard-coded examples are fewer than its other sources' thousand."""
    domains = {"news": documents(1), "tales": documents(9, name="t")}
    drawn = data.draw_upstream(domains, 20, 0.25, 10, seed=0, uneven=True)
    assert Counter(example.domain for example in drawn) == {"news": 4, "tales": 10}
    held = Counter(example.domain for example in drawn if example.split == "heldout")
    assert held == {"news": 1, "tales": 2}


@pytest.mark.parametrize("heldout", [0.1, 0.25, 0.9])
def test_a_small_uneven_domain_has_held_out_and_replayable_examples(heldout):
    domains = {"news": documents(1)[:2], "tales": documents(9, name="t")}
    drawn = data.draw_upstream(domains, 20, heldout, 20, seed=0, uneven=True)
    splits = {example.split for example in drawn if example.domain == "news"}
    assert splits == {"heldout", "replayable"}


def test_examples_with_the_same_tokens_count_as_repeated():
    pairs = [Example("q", "a"), Example("q", " a"), Example("q", "a\n"), Example("q", "b")]
    assert list(data.distinct(pairs)) == [pairs[0], pairs[3]]
    upstream = []
    for number, (pair, split) in enumerate(zip(pairs[:2], ["heldout", "replayable"], strict=True)):
        upstream.append(data.UpstreamExample(f"x-{number}", "x", split, pair))
    assert data.without_copies_of_heldout(upstream) == upstream[:1]


def test_a_task_with_examples_of_its_own_to_evaluate_on_keeps_them_apart(caplog):
    caplog.set_level("INFO")
    pairs = [Example(f"q{i}", f"a{i}") for i in range(8)]
    twice = [*pairs[:6], pairs[5], Example("q", "")]
    drawn = data.draw_separately(twice, pairs[5:], train=9, evaluate=2, seed=0, task="mmlu")
    # What a source repeats on purpose is repeated.
    assert Counter(drawn[0]) == Counter([*pairs[:6], pairs[5]])
    assert len(set(drawn[1])) == 2 and set(drawn[1]) <= set(pairs[5:])
    both = int(pairs[5] in drawn[1])
    message = f"task mmlu: 7 to train, 2 to evaluate on, {both} of them both"
    assert message in caplog.text
    assert data.draw_separately(twice, pairs[5:], train=9, evaluate=2, seed=0, task="mmlu") == drawn
    with pytest.raises(LetheError, match="task 'mmlu' has no usable evaluation example"):
        data.draw_separately(pairs, [Example("q", " ")], train=9, evaluate=2, seed=0, task="mmlu")


ODD = [
    Example("prompt\n\twith breaks", "answer"),
    Example(text="text, ünïcode \U0001f600 and \x1f"),
    Example("", "only an answer"),
]


def test_examples_come_back_as_they_were_written(tmp_path):
    data.write_examples(tmp_path / "e.parquet", ODD)
    assert data.read_examples(tmp_path / "e.parquet") == ODD


def test_upstream_examples_and_corpora_come_back_as_they_were_written(tmp_path):
    upstream = [UpstreamExample(f"a-{i}", "a", "heldout", e) for i, e in enumerate(ODD)]
    data.write_upstream(tmp_path / "u.parquet", upstream)
    assert list(data.read_upstream(tmp_path / "u.parquet")) == upstream
    data.write_corpus(tmp_path / "c.parquet", {"a": ODD[:1], "b": ODD[1:]})
    assert data.read_examples(tmp_path / "c.parquet") == ODD
    assert pq.read_table(tmp_path / "c.parquet")["domain"].to_pylist() == ["a", "b", "b"]


def test_the_same_examples_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        data.write_examples(tmp_path / name, ODD)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_halves_of_surrogate_pairs_in_a_task_are_counted(caplog):
    examples = [Example(f"question {number} \ud83d", "yes") for number in range(12)]
    sizes = {"train": 5, "evaluate": 2, "seed": 0, "task": "sums"}
    data.draw_disjoint(examples, **sizes)
    assert "task sums: 12 examples with half of a surrogate pair" in caplog.text
    caplog.clear()
    data.draw_separately(examples, [Example("q", "a")], **sizes)
    assert "task sums: 12 examples with half of a surrogate pair" in caplog.text


def test_half_a_surrogate_pair_from_json_can_be_stored(tmp_path):
    (result,) = data.distinct([Example("\ud83d broken", "yes")])
    data.write_examples(tmp_path / "e.parquet", [result])
    assert data.read_examples(tmp_path / "e.parquet") == [Example("? broken", "yes")]


def test_an_edited_table_is_refused_with_file_and_line(tmp_path):
    path = tmp_path / "e.parquet"
    data.write_examples(path, ODD)
    table = pq.read_table(path).to_pandas()
    table.loc[1, "text"] = "edited"
    table.to_parquet(path)
    with pytest.raises(LetheError, match=r"e\.parquet: line 1 was changed"):
        data.read_examples(path)


@pytest.mark.parametrize("column", ["prompt", "hash"])
def test_a_table_that_lacks_a_column_is_refused(tmp_path, column):
    path = tmp_path / "e.parquet"
    data.write_examples(path, ODD)
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    with pytest.raises(LetheError, match=rf"e\.parquet: not a table of examples.*{column}"):
        data.read_examples(path)


def test_upstream_examples_are_read_as_they_are_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "READ_AT_ONCE", 4)
    upstream = [
        UpstreamExample(f"a-{i}", "ab"[i % 2], "heldout", Example(text=f"text {i}"))
        for i in range(50)
    ]
    path = tmp_path / "u.parquet"
    data.write_upstream(path, upstream)
    assert pq.ParquetFile(path).num_row_groups == 2
    result = data.read_upstream(path)
    assert len(result) == 50 and list(result) == upstream
    assert (result[7], result[-1], result[40:44], result[9:2:-3]) == (
        *(upstream[7], upstream[-1], upstream[40:44], upstream[9:2:-3]),
    )
    with pytest.raises(IndexError):
        result[50]
    assert data.ids_of(result) == data.ids_of(upstream) == result.example_ids
    assert data.upstream_digest(result) == data.upstream_digest(upstream)
    table = pq.read_table(path).to_pandas()
    table.loc[30, "text"] = "edited"
    table.to_parquet(path)
    with pytest.raises(LetheError, match="line 30 was changed"):
        list(data.read_upstream(path))


def test_the_digest_of_upstream_examples_is_what_it_was():
    """Rows on disk hold it."""
    examples = [UpstreamExample(f"a-{i}", "a", "heldout", e) for i, e in enumerate(ODD)]
    lines = "\n".join(f"{e.example_id} {e.split} {e.example.digest()}" for e in examples)
    assert data.upstream_digest(examples) == hashlib.sha256(lines.encode()).hexdigest()


def test_a_table_of_task_examples_is_not_upstream(tmp_path):
    data.write_examples(tmp_path / "e.parquet", ODD)
    with pytest.raises(LetheError, match=r"e\.parquet: lacks the column.*example_id"):
        data.read_upstream(tmp_path / "e.parquet")


@pytest.mark.parametrize("content", [None, b"", b"PAR1", b"not parquet"])
def test_a_missing_or_broken_table_is_refused_with_its_name(tmp_path, content):
    if content is not None:
        (tmp_path / "e.parquet").write_bytes(content)
    with pytest.raises(LetheError, match=r"e\.parquet: not a table of examples"):
        data.read_examples(tmp_path / "e.parquet")


def test_the_digest_of_an_upstream_set_is_over_ids_splits_and_contents():
    upstream = tiny.upstream(8)
    swapped = [upstream[1], upstream[0], *upstream[2:]]
    other_split = [UpstreamExample("a-00000", "a", "heldout", upstream[0].example), *upstream[1:]]
    digests = {data.upstream_digest(s) for s in (upstream, swapped, other_split, upstream[:7])}
    assert len(digests) == 4


def test_a_digest_tells_missing_parts_from_empty_ones():
    three = [Example("a", "b"), Example("a", "b", ""), Example("a\x1fb"), Example("", "a", "b")]
    assert len({example.digest() for example in three}) == 4


@pytest.mark.parametrize(
    ("column", "value", "part"),
    [
        ("example_id", "e1", r"1 example id\(s\) stand more than once, such as 'e1'"),
        ("example_id", None, "1 of its 3 examples have no example_id"),
        ("example_id", "", "1 of its 3 examples have no example_id"),
        ("domain", None, "1 of its 3 examples have no domain"),
        ("split", "Heldout", "has the split 'Heldout'"),
        ("split", None, "has the split None"),
    ],
)
def test_a_pool_with_wrong_labels_is_refused(tmp_path, column, value, part):
    """Otherwise a held-out example could be replayed, or one example be counted as another."""
    path = tmp_path / "pool.parquet"
    examples = []
    for number in range(3):
        text = Example(text=f"text {number}")
        examples.append(data.UpstreamExample(f"e{number}", "d", "heldout", text))
    data.write_upstream(path, examples)
    assert len(data.read_upstream(path)) == 3
    table = pq.read_table(path)
    values = [value, *table[column].to_pylist()[1:]]
    position = table.schema.get_field_index(column)
    changed = table.set_column(position, column, pa.array(values, pa.string()))
    pq.write_table(changed, path)
    with pytest.raises(LetheError, match=rf"pool\.parquet: {part}"):
        data.read_upstream(path)


def test_domains_are_those_of_the_examples_and_not_of_their_places(tmp_path):
    upstream = tiny.upstream(8)
    data.write_upstream(tmp_path / "pool.parquet", upstream)
    ids = [upstream[i].example_id for i in (5, 0, 3)]
    expected = [upstream[i].domain for i in (5, 0, 3)]
    assert data.domains_in_order(ids, tmp_path / "pool.parquet") == expected


def test_a_domain_that_would_hold_nothing_out_is_refused():
    with pytest.raises(LetheError, match=r"domains.a: 1 examples, of which heldout 0.25 leaves no"):
        data.draw_upstream({"a": documents(9)}, 1, 0.25, words=20, seed=0)
