import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from bdnfs.core.errors import SpecError
from bdnfs.spec.document import DEPTH_MAX, DOCUMENT_BYTES_MAX, parse_json, parse_yaml, read_document

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("", None),
        ("# only a comment\n", None),
        ("a: 1\nb: [x, 'y', ~, true, 1.5]\n", {"a": 1, "b": ["x", "y", None, True, 1.5]}),
        ("a:\n- b: c\n  d:\n", {"a": [{"b": "c", "d": None}]}),
        (
            "- 2024-01-01\n- yes\n- 0x10\n- 1e5\n- 1_000\n- 12:30\n",
            ["2024-01-01", "yes", "0x10", "1e5", "1_000", "12:30"],
        ),
        ("- '1'\n- !!str 1\n- ! 1\n- |\n  1\n", ["1", "1", "1", "1\n"]),
        ("a: &x [1]\nb: *x\n", {"a": [1], "b": [1]}),
        ("\ufeffa: 1", {"a": 1}),
        ('{"a": {"b": "\\u00e9"}}', {"a": {"b": "é"}}),
    ],
)
def test_yaml_is_read_as_people_write_it(content: str, value: object) -> None:
    assert parse_yaml(content, "f") == value


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "'a' is there twice"),
        ("a:\n  x: 1\n  x: 1\n", 3, "'x' is there twice"),
        ("a: 1\n---\nb: 2\n", 2, "more than one document"),
        ("a: [1\nb: 2\n", 2, "not valid YAML"),
        ("a: 1\n\tb: 2\n", 2, "not valid YAML"),
        ("a: *nothing\n", 1, "refers to nothing"),
        ("a: &a [*a]\n", 1, "refers to what it is part of"),
        ("? [a]\n: 1\n", 1, "a key is a list"),
        ("a: !!python/object:os.system x\n", 1, "the tag"),
        ("a: !!binary aGk=\n", 1, "the tag"),
        ("a: !!set {x}\n", 1, "the tag"),
        ("[" * (DEPTH_MAX + 1), 1, "deep"),
        ("[" * 500_000, 1, "deep"),
        ("- " * 100_000, 1, "deep"),
        ("{a: " * 100_000, 1, "deep"),
    ],
)
def test_bad_yaml_is_refused_with_its_line(content: str, line: int, problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_yaml(content, "f.yaml")
    assert str(caught.value).startswith(f"f.yaml:{line}: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize("content", ["a\x00b", "a: \x07", "\ud800", "a: \ufffe"])
def test_characters_yaml_has_not_are_refused(content: str) -> None:
    with pytest.raises(SpecError, match=r"^f: not valid YAML"):
        parse_yaml(content, "f")


def test_errors_do_not_quote_the_file() -> None:
    with pytest.raises(SpecError) as caught:
        parse_yaml("token: hunter2: [hunter2\n", "f")
    assert "hunter2" not in str(caught.value)


def test_aliases_of_aliases_take_no_time() -> None:
    # "Billion laughs": 10^30 elements, shared, never copied.
    content = "a0: &a0 [x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 31)
    )
    document = parse_yaml(content, "f")
    assert isinstance(document, dict)
    assert len(document) == 31


@given(PLAIN)
def test_what_yaml_writes_is_read_back(value: object) -> None:
    assert parse_yaml(yaml.safe_dump(value), "f") == value


@given(PLAIN)
def test_what_json_writes_is_read_back(value: object) -> None:
    assert parse_json(json.dumps(value), "f") == value


@given(st.text(max_size=60) | st.text(alphabet="ab:-[]{}&*!|>'\"#%@,? \n\t", max_size=40))
@example("!!int x")
@example("- !<tag:yaml.org,2002:str> a\n- b")
@example("%YAML 9.9\n---\na")
def test_any_text_is_a_document_or_a_spec_error(content: str) -> None:
    for parse in (parse_yaml, parse_json):
        try:
            value = parse(content, "f")
        except SpecError:
            continue
        assert isinstance(value, None | bool | int | float | str | list | dict)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ("[" * 200_000, "nested too deeply"),
        ("1" * 5000, "too long"),
        ('{"a": 1} x', "not valid JSON"),
    ],
)
def test_bad_json_is_refused(content: str, problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        parse_json(content, "f.json")


def test_the_suffix_says_json(tmp_path: Path) -> None:
    # YAML would refuse the tab and halve the emoji's surrogate pair.
    content = '{\n\t"a": "\\ud83d\\ude00"}'
    (tmp_path / "f.json").write_text(content)
    assert read_document(str(tmp_path / "f.json"), "the spec") == {"a": "😀"}


def test_files_that_are_none_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"#" * (DOCUMENT_BYTES_MAX + 1))
    (tmp_path / "latin").write_bytes("é: 1".encode("latin-1"))
    (tmp_path / "loop").symlink_to("loop")
    for name, problem in [
        ("missing", "No such file"),
        (".", "a directory"),
        ("fifo", "not a regular file"),
        ("large", "over 1 MiB"),
        ("latin", "byte 0 is not UTF-8"),
        ("loop", "symbolic links"),
        ("a\x00b", "not a path"),
    ]:
        with pytest.raises(SpecError, match=problem) as caught:
            read_document(f"{tmp_path}/{name}", "the spec")
        assert str(caught.value).startswith("can't read the spec ")


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(b"a: 1\n" + b"#" * (DOCUMENT_BYTES_MAX - 5))
    assert read_document(str(tmp_path / "f.yaml"), "the spec") == {"a": 1}
