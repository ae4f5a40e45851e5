import time
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bdnfs.core.errors import SpecError
from bdnfs.spec.patterns import PATTERN_CHARS_MAX, PATTERNS_MAX, Patterns, no_match_message, warnings

ALPHABET = "ab.-/*?[]!"


# A matcher that tries everything: slow, and right at a glance.


def slow_match(pattern: str, path: str) -> bool:
    parts = pattern.split("/")
    if parts[-1] == "":
        parts[-1] = "**"
    return slow_components(parts, path.split("/"))


def slow_components(parts: list[str], names: list[str]) -> bool:
    if not parts:
        return not names
    if parts[0] == "**":
        if parts == ["**"]:
            return len(names) >= 1
        return any(slow_components(parts[1:], names[skipped:]) for skipped in range(len(names) + 1))
    return bool(names) and slow_glob(parts[0], names[0]) and slow_components(parts[1:], names[1:])


def slow_glob(glob: str, name: str) -> bool:
    if not glob:
        return not name
    if glob[0] == "*":
        return any(slow_glob(glob[1:], name[skipped:]) for skipped in range(len(name) + 1))
    if not name:
        return False
    close = glob.find("]", 3 if glob[1:2] == "!" else 2)
    if glob[0] == "[" and close > 0:
        body = glob[1:close].removeprefix("!")
        negated = glob[1:2] == "!"
        return (name[0] in set(class_members(body))) != negated and slow_glob(glob[close + 1 :], name[1:])
    return glob[0] in ("?", name[0]) and slow_glob(glob[1:], name[1:])


def class_members(body: str) -> Iterator[str]:
    while body:
        if len(body) >= 3 and body[1] == "-":
            yield from map(chr, range(ord(body[0]), ord(body[2]) + 1))
            body = body[3:]
        else:
            yield body[0]
            body = body[1:]


@settings(max_examples=800)
@given(st.text(alphabet=ALPHABET, max_size=12), st.text(alphabet="ab.-/", max_size=10))
@example("**/*.a", "b.a")
@example("a/**/b", "a/b")
@example("**/a/**/b/**", "a/a/b/a/b/b")
@example("*a*b", "aab")
@example("[!a]", "/")
@example("[]]", "]")
@example("[]-a]", "]")
@example("**/**", "a")
@example("**/", "a")
@example("***", "ab")
def test_patterns_match_what_the_slow_matcher_matches(pattern: str, path: str) -> None:
    try:
        patterns = Patterns((pattern,))
    except SpecError:
        return
    assert patterns.match(path) == slow_match(pattern, path)


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(["**", "*", "a", "b", "?", "a*", "*b*a", "[ab]", "[!a]*"]), min_size=1, max_size=6
    ),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=3), min_size=1, max_size=7),
)
def test_patterns_of_many_components_match_too(parts: list[str], names: list[str]) -> None:
    pattern, path = "/".join(parts), "/".join(names)
    assert Patterns((pattern,)).match(path) == slow_match(pattern, path)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.json", ["a.json", ".json"], ["d/a.json", "a.jsonl"]),
        ("**/*.json", ["a.json", "d/a.json", "d/e/a.json"], ["a.txt"]),
        ("onnx/", ["onnx/a", "onnx/d/b"], ["onnx", "a/onnx/b", "onnxy/a"]),
        ("onnx/**", ["onnx/a", "onnx/d/b"], ["onnx", "a/onnx/b"]),
        ("onnx/*", ["onnx/a"], ["onnx/d/b"]),
        ("**/onnx/**", ["onnx/a", "x/onnx/a/b"], ["onnx", "x/onnx"]),
        ("**", ["a", "d/a"], []),
        ("model-0000[1-3]-of-*.bin", ["model-00002-of-9.bin"], ["model-00004-of-9.bin"]),
        ("?.bin", ["a.bin"], ["ab.bin", ".bin"]),
        ("a+b(c)|d$.txt", ["a+b(c)|d$.txt"], ["aab(c)|d$.txt", "d$.txt"]),
        ("[!a]*", ["b", "bc"], ["a", "/b", "x/b"]),
        ("[*]", ["*"], ["a"]),
        ("[z-a]", [], ["z", "a", "m"]),
        ("a[", ["a["], ["a"]),
        ("x.JSON", ["x.JSON"], ["x.json"]),
        ("line*", ["line\nbreak"], []),
    ],
)
def test_the_documented_meanings(pattern: str, yes: list[str], no: list[str]) -> None:
    patterns = Patterns((pattern,))
    assert [path for path in yes + no if patterns.match(path)] == yes


def test_ignore_wins_and_nothing_allowed_allows_everything() -> None:
    assert Patterns().match("any/thing")
    assert not Patterns((), ("*.md",)).match("README.md")
    assert Patterns((), ("*.md",)).match("docs/README.md")
    assert not Patterns(("README.md",), ("*.md",)).match("README.md")


class Entry(msgspec.Struct, frozen=True):
    path: str


def test_select_keeps_order() -> None:
    entries = [Entry("b.json"), Entry("a.md"), Entry("a.json")]
    assert Patterns(("*.json",)).select(entries) == [entries[0], entries[2]]


def test_the_key_is_the_same_for_the_same_set_and_tells_others_apart() -> None:
    assert Patterns(("a", "b", "a")).key == Patterns(("b", "a")).key
    keys = {
        Patterns(*each).key
        for each in [(), (("a",),), ((), ("a",)), (("a", "b"),), (("ab",),), (('a","b',),)]
    }
    assert len(keys) == 6


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("", "empty"),
        (" ", "empty"),
        ("a\u2028", "control"),
        ("/abs", "relative"),
        ("a//b", "component"),
        ("./a", "component"),
        ("a/../b", "component"),
        ("!*.md", "ignore_patterns"),
        ("*.{json,txt}", "one pattern for each"),
        ("a\x00", "control"),
        ("a\ud800", "Unicode"),
        ("a" * (PATTERN_CHARS_MAX + 1), "longer"),
    ],
)
def test_patterns_that_match_nothing_are_refused(pattern: str, hint: str) -> None:
    for patterns in ({"allow": (pattern,)}, {"ignore": (pattern,)}):
        with pytest.raises(SpecError, match=f"{next(iter(patterns))}_patterns") as caught:
            Patterns(**patterns)
        assert hint in str(caught.value)
        assert len(str(caught.value)) < 400


def test_a_flood_of_patterns_is_refused() -> None:
    with pytest.raises(SpecError, match=f"at most {PATTERNS_MAX}"):
        Patterns(tuple(map(str, range(PATTERNS_MAX + 1))))


@pytest.mark.parametrize(
    "pattern",
    [
        "*a" * 500 + "b",
        "**/*a*a*a*/" * 80 + "b",
        "**/a/" * 200 + "b",
        "a/**/" * 200 + "*b",
        "?*" * 500 + "b",
        "[a-z]*" * 150 + "b",
    ],
)
@pytest.mark.parametrize("path", ["a" * 1000, "a/" * 1000 + "a", "aaa/" * 500 + "c"])
def test_hostile_patterns_take_no_time(pattern: str, path: str) -> None:
    patterns = Patterns((pattern[-PATTERN_CHARS_MAX:].lstrip("/"),))
    patterns.match("a")
    started = time.process_time()
    assert not patterns.match(path)
    # Backtracking would take longer than the universe has; linear matching takes milliseconds.
    assert time.process_time() - started < 2


def test_a_flat_pattern_that_drops_subdirectories_is_named() -> None:
    patterns = Patterns(("*.safetensors", "config.json"), ("old/",))
    listed = ["a.safetensors", "config.json", "vae/b.safetensors", "unet/c.safetensors", "old/d.safetensors"]
    found = warnings(patterns, listed, [path for path in listed if patterns.match(path)])
    assert len(found) == 1
    assert "'*.safetensors'" in found[0]
    assert "leaves out 2 files" in found[0]
    assert "write '**/*.safetensors'" in found[0]


def test_left_out_loading_files_are_named() -> None:
    listed = ["a.safetensors", "config.json", "tokenizer.json", "vocab.txt", "README.md", "onnx/config.json"]
    patterns = Patterns(("*.safetensors",))
    found = warnings(patterns, listed, ["a.safetensors"])
    assert len(found) == 1
    assert "3 files ('config.json', 'tokenizer.json', 'vocab.txt')" in found[0]


@pytest.mark.parametrize(
    ("patterns", "listed"),
    [
        (Patterns(), ["a.json", "d/config.json"]),
        (Patterns(("**/*.json",)), ["a.json", "d/config.json", "d/a.bin"]),
        # Named by name: meant.
        (Patterns((), ("config.json",)), ["config.json", "a.bin"]),
        # A whole directory left out, its config with it.
        (Patterns((), ("onnx/",)), ["a.bin", "onnx/config.json", "onnx/a.bin"]),
        (Patterns(("a.bin",)), ["a.bin", "d/a.bin"]),
    ],
)
def test_what_is_meant_gives_no_warning(patterns: Patterns, listed: list[str]) -> None:
    assert warnings(patterns, listed, [path for path in listed if patterns.match(path)]) == []


def test_no_match_says_how_many_were_listed_and_what_to_write() -> None:
    message = no_match_message("hf://o/r", Patterns(("*.bin",), ("x/",)), 12, iter(["d/a.bin", "d/b.bin"]))
    assert message.startswith("hf://o/r: ")
    for part in ("['*.bin']", "['x/']", "none of the 12 files", "'d/a.bin'", "'**/*.json'"):
        assert part in message
    assert "no files at all" in no_match_message("s3://b/p", Patterns(("*",)), 0, [])
    assert len(no_match_message("w", Patterns(("a" * 1000,) * 256), 10**6, ["b" * 5000] * 50)) < 3000


@given(st.lists(st.text(min_size=1, max_size=20), max_size=4), st.lists(st.text(max_size=20), max_size=4))
def test_any_patterns_are_patterns_or_a_spec_error(allow: list[str], ignore: list[str]) -> None:
    try:
        patterns = Patterns(tuple(allow), tuple(ignore))
    except SpecError:
        return
    listed = ["a", "d/a", *allow]
    kept = [path for path in listed if patterns.match(path)]
    wanted = [path for path in listed if not allow or any(slow_match(pattern, path) for pattern in allow)]
    assert kept == [path for path in wanted if not any(slow_match(pattern, path) for pattern in ignore)]
    warnings(patterns, listed, kept)
    no_match_message("w", patterns, 3, listed)
