"""Texts and domains beside a matrix of the user's own."""

import logging

import pytest

from lethe.data.examples import Example, UpstreamExample, write_upstream
from lethe.data.own_texts import read_own_texts
from lethe.errors import LetheError

HOSTILE = "<script>alert('x')</script>, \"quoted\"\nand a second line 🦜"


def write(path, text):
    path.write_text(text, "utf-8")
    return path


def test_texts_are_read_in_the_order_of_z_and_others_are_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    quoted = '"' + HOSTILE.replace('"', '""') + '"'
    content = f"domain,example_id,text\nnews,b,plain\ncode,a,{quoted}\nnews,c,not in Z\n"
    path = write(tmp_path / "texts.csv", content)
    examples = read_own_texts(path, ["a", "b"])
    assert [example.example_id for example in examples] == ["a", "b"]
    assert [example.domain for example in examples] == ["code", "news"]
    assert examples[0].example.text == HOSTILE
    assert "1 texts of examples that are not in Z are left out" in caplog.text


def test_a_pool_of_lethe_is_read_too(tmp_path):
    path = tmp_path / "pool.parquet"
    pair = UpstreamExample("a", "news", "replayable", Example(prompt="1 + 1", answer="2"))
    write_upstream(path, [pair])
    assert read_own_texts(path, ["a"]) == [pair]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("example_id,domain,text\na,news,x\n", "no line for 1 of the 2 examples of Z, such as 'b'"),
        ("example_id,text\na,x\n", "lacks domain"),
        ("example_id,domain,text,text\na,n,x,y\n", "twice"),
        ("example_id,domain,text\na,news,x\na,news,y\n", "line 3: example_id 'a' stands twice"),
        ("example_id,domain,text\na,,x\n", "line 2: an example needs an example_id and a domain"),
        ("example_id,domain,text\na,news,x,y\n", "line 2: 4 cell"),
        ('example_id,domain,text\na,news,"x\n', "cannot be read as CSV"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path, content, message):
    path = write(tmp_path / "texts.csv", content)
    with pytest.raises(LetheError, match="texts.csv") as error:
        read_own_texts(path, ["a", "b"])
    assert message in str(error.value)


def test_a_file_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_bytes(b"example_id,domain,text\na,news,\xff\n")
    with pytest.raises(LetheError, match=r"texts\.csv: cannot be read as CSV in UTF-8"):
        read_own_texts(path, ["a"])
