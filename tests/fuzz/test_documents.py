"""Files that people write, and the texts in them: spec, lock file, config, sources, patterns, sizes."""

import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdnfs.core.errors import BdnfsError
from bdnfs.core.units import parse_duration, parse_size
from bdnfs.spec.config import load_config
from bdnfs.spec.load import load_spec, place
from bdnfs.spec.lock import Lock, read_lock, write_lock
from bdnfs.spec.patterns import PATTERN_CHARS_MAX, Patterns, warnings
from bdnfs.spec.source import parse_source
from bdnfs.spec.weights import Spec
from tests.fuzz.judging import CPU_S_MAX, FUZZ, judged
from tests.fuzz.mutations import NEAR, mutated

SPECS = (
    b"""weights:
  - source: hf://Qwen/Qwen3-0.6B@main
    mount_location: /app/models/Qwen/Qwen3-0.6B
    allow_patterns: ["*.safetensors", "*.json", "tokenizer*"]
    ignore_patterns: ["*.md"]
    auth: {auth_method: CUSTOM_SECRET, auth_secret_name: hf_access_token}
  - source: s3://bucket/prefix
    mount_location: models/b
    auth_secret_name: keys
""",
    b'{"weights": [{"source": "https://h/f", "mount_location": "/a", "allow_patterns": ["**/x"]}]}',
)
LOCK = b"""version: 1
weights:
- source: hf://org/repo@main
  allow_patterns: ['*.json']
  revision: 0123456789abcdef0123456789abcdef01234567
- source: s3://bucket/prefix
  revision: listing-0123456789abcdef
"""
CONFIG = b"""cache: {directory: /data/cache, capacity: 1.5TiB, reserve: 10GiB}
secrets: {directory: /run/secrets}
upstream: {attempts: 3, stall: 30s}
read_deadline: 5m
"""


@pytest.fixture(scope="module")
def place_(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("documents")


@FUZZ
@given(content=mutated(SPECS), json=st.booleans())
def test_any_file_is_a_spec_or_an_error(place_: Path, content: bytes, json: bool) -> None:
    path = place_ / ("spec.json" if json else "spec.yaml")
    path.write_bytes(content)
    spec = judged(lambda: load_spec(str(path)))
    if not isinstance(spec, Spec):
        return
    placed = judged(lambda: place(spec, None, "/root/dir"))
    if isinstance(placed, BdnfsError):
        return
    for each in placed:
        assert os.path.normpath(each.location) == each.location
        assert each.location.startswith("/root/dir/")
    for weights in spec.weights:
        assert parse_source(weights.source.text) == weights.source


@FUZZ
@given(content=mutated([LOCK]))
def test_any_file_is_a_lock_or_an_error_and_written_again_is_the_same(place_: Path, content: bytes) -> None:
    path, again = place_ / "spec.lock", place_ / "again.lock"
    path.write_bytes(content)
    lock = judged(lambda: read_lock(str(path)))
    if isinstance(lock, Lock):
        write_lock(str(again), lock.entries)
        assert read_lock(str(again)) == lock


@FUZZ
@given(content=mutated([CONFIG]))
def test_any_file_is_a_config_or_an_error(place_: Path, content: bytes) -> None:
    path = place_ / "config.yaml"
    path.write_bytes(content)
    judged(lambda: load_config(str(path), {"HOME": "/root"}))


@FUZZ
@given(variables=st.dictionaries(
    st.sampled_from(["BDNFS_CACHE_DIR", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "HTTPS_PROXY", "no_proxy",
                     "AWS_ENDPOINT_URL", "XDG_CACHE_HOME", "HOME", "SSL_CERT_FILE"]),
    st.text(st.characters(exclude_characters="\0"), max_size=30),
))  # fmt: skip
def test_any_environment_is_a_config_or_an_error(place_: Path, variables: dict[str, str]) -> None:
    judged(lambda: load_config(str(place_ / "empty.yaml"), variables))
    (place_ / "empty.yaml").write_text("")
    judged(lambda: load_config(str(place_ / "empty.yaml"), variables))


@FUZZ
@given(text=mutated([b"hf://org/repo@main", b"hf://datasets/o/d", b"s3://b/p/q", b"https://u:p@h:1/f?v=1#x",
                     b"r2://acc.bucket/p", b"azure://acc/cont/p", b"sftp://h/p"]))  # fmt: skip
def test_any_text_is_a_source_that_reads_back_or_an_error(text: bytes) -> None:
    source = judged(lambda: parse_source(text.decode("utf-8", "surrogateescape")))
    if not isinstance(source, BdnfsError):
        assert parse_source(source.text) == source


@FUZZ
@given(text=mutated([b"1.5TiB", b"200GB", b"4096", b"30m", b"7d", b"1.5h", b"0"]))
def test_any_text_is_a_quantity_or_an_error(text: bytes) -> None:
    written = text.decode("utf-8", "surrogateescape")
    size = judged(lambda: parse_size(written))
    assert isinstance(size, BdnfsError) or 0 <= size < 1 << 63
    duration = judged(lambda: parse_duration(written))
    assert isinstance(duration, BdnfsError) or 0 <= duration < 1 << 40


# Of what a hostile pattern is made; a path that nearly matches again and again is its other half.
_PIECE = st.sampled_from(
    ["*", "**", "?", "a", "b", "/", "[ab]", "[!a]", "a*", "*a", "**/", "*a*b", "[a-", "]"]
)
_PATTERN = st.lists(_PIECE, min_size=1, max_size=300).map(lambda each: "".join(each)[:PATTERN_CHARS_MAX])


@FUZZ
@given(
    allow=st.lists(_PATTERN, min_size=1, max_size=3),
    piece=st.sampled_from(["a", "b", "ab", "a/", "ab/", "a/b/", "/", "aab"]),
    count=st.integers(1, 700),
    end=st.sampled_from(["", "x", "/x", "b", "\n"]),
)
def test_no_pattern_takes_long_with_any_path(allow: list[str], piece: str, count: int, end: str) -> None:
    patterns = judged(lambda: Patterns(tuple(allow)))
    if isinstance(patterns, Patterns):
        path = (piece * count)[:2048] + end
        judged(lambda: patterns.match(path))
        judged(lambda: warnings(patterns, [path, "a/" + path], []))


@FUZZ
@given(pattern=st.text(max_size=40) | NEAR.map(lambda data: data.decode("utf-8", "replace")))
def test_a_pattern_never_escapes_into_the_regex(pattern: str) -> None:
    """Whatever stands in a pattern without wildcards means itself."""
    patterns = judged(lambda: Patterns((pattern,)))
    if isinstance(patterns, Patterns) and not re.search(r"[*?\[]|/$", pattern):
        assert patterns.match(pattern)
        assert not patterns.match(pattern + "x")


def bomb(depth: int, width: int) -> str:
    lines = ["a0: &a0 lol"]
    for level in range(1, depth):
        items = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} [{items}]")
    return "\n".join([*lines, f"weights: *a{depth - 1}"])


BOMBS = {
    "billion laughs": bomb(30, 10),
    "laughs as the source": bomb(9, 9).replace("weights: ", "weights:\n - mount_location: /a\n   source: "),
    "deep flow": "weights: " + "[" * 400_000,
    "deep block": "\n".join(" " * depth + "- " for depth in range(1200)),
    "deep json in yaml": '{"weights":' * 50_000,
    "a key of aliases": "a: &a [1]\n? *a\n: 1",
    "merge keys": "a: &a {b: 1}\nweights:\n  <<: *a",
    "python objects": "weights: !!python/object/apply:os.system ['touch /tmp/bdnfs-was-here']",
    "an int of 200,000 digits": "weights: " + "9" * 200_000,
    "a float past all floats": "weights: " + "9" * 30_000 + ".5e99999",
    "a sexagesimal": "weights: " + ":".join(["59"] * 50_000),
    "many anchors": "\n".join(f"k{number}: &a{number} x" for number in range(40_000)),
    "many tags": "\n".join(f"%TAG !t{number}! tag:x,2000:" for number in range(20_000)) + "\n--- x",
    "keys twice": "weights: []\nweights: []",
    "long lines of quotes": 'weights: "' + '\\"' * 400_000,
    "comments": "#" * 900_000,
    "blank": "\n" * 900_000,
    "tabs": "weights:\n" + "\t" * 400_000,
    "keys without end": "\n".join(f"k{number}: 1" for number in range(80_000)),
    "colons": ": " * 300_000,
    "dashes": "- " * 300_000,
    "question marks": "? " * 100_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_bounded_time_and_memory(tmp_path: Path, name: str) -> None:
    """In a process of its own, whose memory is limited: what it may use is what it has used, plus 200 MiB."""
    import subprocess
    import sys

    path = tmp_path / "spec.yaml"
    path.write_text(BOMBS[name])
    code = """
import resource, sys, time
from bdnfs.core.errors import BdnfsError
from bdnfs.spec.load import load_spec
import yaml
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
began = time.process_time()
try:
    load_spec(sys.argv[1])
except BdnfsError as error:
    said = str(error)
    assert said and "\\n" not in said and len(said) < 2000, said[:500]
else:
    sys.exit("was taken")
print(time.process_time() - began)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 10 * CPU_S_MAX, f"{done.stdout.strip()} s of processor time"
    assert not os.path.exists("/tmp/bdnfs-was-here")


def test_the_clock_of_the_judge_can_fail() -> None:
    def slow() -> None:
        until_s = time.thread_time() + CPU_S_MAX
        while time.thread_time() < until_s:
            pass

    with pytest.raises(AssertionError, match="processor time"):
        judged(slow)
