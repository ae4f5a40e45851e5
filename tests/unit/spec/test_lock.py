import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdnfs.core.errors import SpecError
from bdnfs.spec.document import parse_yaml
from bdnfs.spec.lock import Lock, Locked, lock_path, locked, parse_lock, read_lock, write_lock
from bdnfs.spec.patterns import Patterns
from bdnfs.spec.source import parse_source
from bdnfs.spec.weights import Weights

COMMIT, OTHER = "a" * 40, "b" * 40


def weights(source: str, *allow: str) -> Weights:
    return Weights(parse_source(source), "/m", Patterns(allow))


def test_a_lock_names_what_each_source_was_resolved_to(tmp_path: Path) -> None:
    path = str(tmp_path / "spec.lock")
    branch, default, bucket = weights("hf://o/r@main", "*.json"), weights("hf://o/r"), weights("s3://b/p")
    write_lock(path, [locked(branch, COMMIT), locked(default, OTHER), locked(bucket, "list:12ab")])
    lock = read_lock(path)
    assert lock is not None
    assert lock.revision_of(branch) == COMMIT
    assert lock.revision_of(default) == OTHER
    assert lock.revision_of(bucket) == "list:12ab"
    # Where it appears is not part of what it is.
    assert lock.revision_of(Weights(branch.source, "/elsewhere", branch.patterns)) == COMMIT


def test_what_the_spec_has_changed_is_no_longer_locked() -> None:
    lock = Lock((locked(weights("hf://o/r@main", "*.json"), COMMIT),))
    for changed in ("hf://o/r@v2", "hf://o/r", "hf://datasets/o/r@main", "hf://o/r2@main"):
        assert lock.revision_of(weights(changed, "*.json")) is None
    assert lock.revision_of(weights("hf://o/r@main")) is None


def test_a_commit_in_the_spec_needs_no_lock() -> None:
    assert Lock(()).revision_of(weights(f"hf://o/r@{COMMIT}")) == COMMIT


def test_no_lock_file_is_no_lock(tmp_path: Path) -> None:
    assert read_lock(str(tmp_path / "spec.lock")) is None


def test_the_file_is_made_to_be_read(tmp_path: Path) -> None:
    path = tmp_path / "spec.lock"
    entry = locked(weights("hf://o/r@main", "*.json", "**/é.txt"), COMMIT)
    write_lock(str(path), [entry, entry])
    assert path.read_text() == (
        "# Written by `bdnfs lock`: what each source was resolved to. Keep it beside its spec.\n"
        "version: 1\n"
        "weights:\n"
        "- source: hf://o/r@main\n"
        "  allow_patterns:\n"
        "  - '*.json'\n"
        "  - '**/é.txt'\n"
        f"  revision: {COMMIT}\n"
    )
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444


def test_writing_replaces_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "spec.lock"
    write_lock(str(path), [locked(weights("hf://o/r"), COMMIT)])
    before = path.stat().st_ino
    write_lock(str(path), [locked(weights("hf://o/r"), OTHER)])
    assert path.stat().st_ino != before
    assert OTHER in path.read_text()
    assert os.listdir(tmp_path) == ["spec.lock"]


def test_a_failed_write_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "spec.lock"
    write_lock(str(path), [locked(weights("hf://o/r"), COMMIT)])

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SpecError, match="No space left"):
        write_lock(str(path), [locked(weights("hf://o/r"), OTHER)])
    assert COMMIT in path.read_text()
    assert os.listdir(tmp_path) == ["spec.lock"]


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"can't write the lock file .*No such file"):
        write_lock(str(tmp_path / "missing" / "spec.lock"), [])


@pytest.mark.parametrize("revision", ["main", COMMIT[:-1], COMMIT.upper(), "", "../x"])
def test_only_a_full_commit_locks_a_repository(revision: str) -> None:
    with pytest.raises(SpecError, match="not a full commit"):
        locked(weights("hf://o/r@main"), revision)


@pytest.mark.parametrize("revision", ["", "a b", "../x", "a/b", "x" * 300, "a\n"])
def test_only_a_digest_locks_a_listing(revision: str) -> None:
    with pytest.raises(SpecError, match="not a digest"):
        locked(weights("s3://b"), revision)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a mapping"),
        ("[]", "expected a mapping"),
        ("weights: []", "version: expected 1, found nothing"),
        ("version: true", "version: expected 1, found true"),
        ("version: '1'", "version: expected 1, found '1'"),
        ("version: 2\nnew: x", "has version the number 2, this bdnfs knows 1; use a newer bdnfs"),
        ("version: 1\nweighs: []", "did you mean 'weights'?"),
        ("version: 1\nweights: {}", "weights: expected a list"),
        ("version: 1\nweights: [x]", "weights[0]: expected a mapping"),
        (f"version: 1\nweights: [{{revision: {COMMIT}}}]", "weights[0].source: expected text"),
        ("version: 1\nweights: [{source: 'hf://o/r'}]", "weights[0].revision: expected text"),
        ("version: 1\nweights: [{source: 'hf://o/r', revision: main}]", "'main' is not a full commit"),
        (f"version: 1\nweights: [{{source: 'hg://o/r', revision: {COMMIT}}}]", "unknown scheme"),
        (
            f"version: 1\nweights: [&a {{source: 'hf://o/r', revision: {COMMIT}}}, *a]",
            "weights[1]: hf://o/r is there twice",
        ),
    ],
)
def test_a_broken_lock_is_refused_with_its_place(content: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_lock(parse_yaml(content, "spec.lock"), "spec.lock")
    assert message in str(caught.value)


def test_the_lock_lies_beside_the_spec() -> None:
    assert lock_path("/a/spec.yaml") == "/a/spec.lock"
    assert lock_path("jobs/train.v2.json") == "jobs/train.v2.lock"
    assert lock_path("spec") == "spec.lock"
    with pytest.raises(SpecError):
        lock_path("spec.lock")


NAMES = st.text(alphabet="abC0: '\"#&*!|>%@`-.,{}[]\\é\x85\u2028\ufeff😀", min_size=1, max_size=10)
HEX = st.text(alphabet="0123456789abcdef", min_size=40, max_size=40)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["hf://o/r", "hf://o/r@1.0", "hf://a@1e5"]), st.lists(NAMES, max_size=3), HEX
        )
    )
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, list[str], str]]
) -> None:
    entries: dict[tuple[str, str], Locked] = {}
    for source, allow, revision in rows:
        try:
            entry = locked(weights(source, *allow), revision)
        except SpecError:
            continue
        entries[entry.key] = entry
    path = str(tmp_path_factory.getbasetemp() / "roundtrip.lock")
    write_lock(path, entries.values())
    assert read_lock(path) == Lock(tuple(entries.values()))
