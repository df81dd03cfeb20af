"""The files of `snakemake --configfile`: which they are, and that each is a mapping of keys."""

from pathlib import Path

import pytest

from lethe.errors import ExperimentError, LetheError
from lethe.jobs.config_files import (
    check_config_files,
    config_files,
    refuse_wrong_config_files,
)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("--cores 2", []),
        ("--config leave_out=['a'] --cores 2 target", []),
        ("--cores 2 --configfile a.yaml", ["a.yaml"]),
        ("--configfile=a.yaml target", ["a.yaml"]),
        ("--configfiles a.yaml b.yaml -n target", ["a.yaml", "b.yaml"]),
        ("--configfile a.yaml -- target", ["a.yaml"]),
        ("--configfile a.yaml --configfile b.yaml", ["b.yaml"]),
        ("-- --configfile a.yaml", []),
    ],
)
def test_config_files_are_all_names_after_the_option(arguments, names):
    assert config_files(arguments.split()) == [Path(name) for name in names]


def test_a_mapping_in_yaml_or_json_passes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("\ufeffexperiment: x\n", "utf-8")
    # Snakemake reads JSON with tabs, which YAML refuses.
    Path("b.json").write_text('{\n\t"experiment": "x"\n}')
    check_config_files(["--configfile", "a.yaml", "b.json"])


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("bad.json", b'{"a": 1,\n]', "not valid JSON .*line 2 column 1"),
        ("bad.json", b'"\xff"', "not valid JSON .*0xff in position 1"),
        ("bad.json", b"[" * 100_000, "nested too deeply"),
        ("bad.json", b"[1]", "an experiment is a mapping of keys, not list"),
        ("bad.yaml", b"text", "an experiment is a mapping of keys, not str"),
        ("bad.yaml", b"__use_yte__: true\na: ?1 + 1\n", "__use_yte__: no such key; remove it"),
        ("bad.json", b'{"__use_yte__": true}', "__use_yte__: no such key; remove it"),
        ("bad.yaml", b"a: 010\n", "line 1: 010 is read as another number"),
    ],
)
def test_another_file_is_refused_with_its_name_and_cause(
    tmp_path, monkeypatch, name, content, cause
):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    with pytest.raises(ExperimentError, match=rf"^{name}: (.|\n)*{cause}"):
        check_config_files(["--configfile", name])


def test_a_target_after_the_first_file_is_named_with_its_right_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("experiment: x\n")
    Path("Z.parquet").write_bytes(b"PAR1\xff")
    for target in ("report.html", "Z.parquet"):
        with pytest.raises(LetheError, match=f"^{target}: .*(.|\n)*name it before --configfile"):
            check_config_files(["--configfile", "a.yaml", target])


def test_a_wrong_file_ends_the_process_with_one_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["snakemake", "-n", "--configfile", "none.yaml"])
    with pytest.raises(SystemExit, match=r"^error: none\.yaml: no such file; .*$"):
        refuse_wrong_config_files()
    monkeypatch.setattr("sys.argv", ["snakemake", "-n"])
    refuse_wrong_config_files()
