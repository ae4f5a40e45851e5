import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdnfs.core.errors import SpecError
from bdnfs.spec.source import BUCKET_SCHEMES, GENERIC_SCHEMES, SCHEMES, Source, is_source_text, parse_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf://org/repo", Source("hf", "org/repo", None)),
        ("hf://gpt2", Source("hf", "gpt2", None)),
        ("hf://gpt2@main", Source("hf", "gpt2", "main")),
        ("hf://Qwen/Qwen3-0.6B@v1.0", Source("hf", "Qwen/Qwen3-0.6B", "v1.0")),
        ("hf://org/repo@refs/pr/1", Source("hf", "org/repo", "refs/pr/1")),
        ("hf://org/repo@refs%2Fpr%2f1", Source("hf", "org/repo", "refs/pr/1")),
        ("hf://org/repo@feature@2", Source("hf", "org/repo", "feature@2")),
        ("hf://org/repo/", Source("hf", "org/repo", None)),
        ("hf://datasets/org/name@main", Source("hf", "org/name", "main", "dataset")),
        ("hf://datasets/squad", Source("hf", "squad", None, "dataset")),
        (f"hf://org/repo@{COMMIT.upper()}", Source("hf", "org/repo", COMMIT)),
        ("s3://bucket", Source("s3", "bucket", None)),
        ("s3://bucket/some prefix/", Source("s3", "bucket/some prefix", None)),
        ("gs://bucket/x?y#z", Source("gs", "bucket/x?y#z", None)),
        ("azure://account/container/x", Source("azure", "account/container/x", None)),
        ("r2://account.bucket/x", Source("r2", "account.bucket/x", None)),
        ("cw://bucket/x", Source("cw", "bucket/x", None)),
        (
            "https://host:8443/a@b/model.bin?version=3",
            Source("https", "host:8443/a@b/model.bin?version=3", None),
        ),
        ("http://[::1]/dir/", Source("http", "[::1]/dir/", None)),
        (
            "https://huggingface.co/o/r/resolve/main/a.bin",
            Source("https", "huggingface.co/o/r/resolve/main/a.bin", None),
        ),
        ("file:///srv/models", Source("file", "/srv/models", None)),
        ("sftp://user@host/models", Source("sftp", "user@host/models", None)),
        ("hdfs:///models", Source("hdfs", "/models", None)),
    ],
)
def test_sources_are_read(text: str, source: Source) -> None:
    assert parse_source(text) == source
    assert parse_source(source.text) == source


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "no scheme"),
        ("   ", "blanks"),
        ("org/repo", "did you mean 'hf://org/repo'"),
        ("org/repo@main", "did you mean 'hf://org/repo@main'"),
        ("models/a/b", "no scheme"),
        ("hg://org/repo", "did you mean"),
        ("HF://org/repo", "did you mean hf://"),
        ("S3://bucket", "did you mean s3://"),
        ("gcs://bucket", "did you mean gs://"),
        ("huggingface://o/r", "did you mean hf://"),
        ("htps://h/x", "did you mean https://"),
        ("sfpt://h/x", "did you mean sftp://"),
        ("memory://x", "Known: hf, s3"),
        ("zip://a::file:///x", "unknown scheme"),
        ("qqqqqqq://x", "unknown scheme 'qqqqqqq'; Known"),
        ("bdn://team/volume", "is no volume"),
        ("bdn:team", "no volume's name"),
        ("bdn:team/volume@12", "12 to 64 hex digits"),
        ("hf://", "names nothing"),
        ("hf:///repo", "names nothing"),
        ("https:///x", "names nothing"),
        ("file://", "names nothing"),
        ("file:///", "names nothing"),
        ("file://models", "absolute"),
        ("hf://org/repo@", "ends in '@'"),
        ("hf://org/", "not a repository"),
        ("hf://org//repo", "not a repository"),
        ("hf://datasets", "not a repository"),
        ("hf://datasets/", "not a repository"),
        ("hf://../repo", "not a repository"),
        ("hf://org/re..po", "not a repository"),
        ("hf://org/re po", "not a repository"),
        ("hf://org/repo?x=1", "not a repository"),
        ("hf://spaces/org/app", "is a Space"),
        ("hf://org/repo/sub/dir", "allow_patterns: ['sub/dir/**']"),
        ("hf://org/repo@a..b", "can't be a branch"),
        ("hf://org/repo@../../x", "can't be a branch"),
        ("hf://org/repo@a b", "can't be a branch"),
        ("hf://org/repo@/x", "can't be a branch"),
        ("hf://org/repo@x.lock", "can't be a branch"),
        ("hf://org/repo@-x", "can't be a branch"),
        ("hf://org/repo@x?y", "can't be a branch"),
        ("hf://org/repo@" + "x" * 300, "can't be a branch"),
        ("s3://bucket/x@main", "no revisions"),
        ("s3:///x", "names nothing"),
        ("s3:// /x", "names no bucket"),
        ("s3://b/x /", "ends in blanks"),
        ("gs://b?x/y", "names no bucket"),
        ("s3://bucket/../other", "'..'"),
        ("azure://account", "azure://account/container"),
        ("r2://bucket/x", "r2://account_id.bucket"),
        ("https://host/a b", "is not a URL"),
        ("https://host:port/x", "is not a URL"),
        ("https://[::1/x", "is not a URL"),
        ("https://host/x#part", "after '#'"),
        ("https://huggingface.co/org/repo", "write 'hf://org/repo'"),
        ("https://huggingface.co/org/repo/tree/main", "write 'hf://org/repo@main'"),
        ("hf://org/re\x00po", "control character"),
        ("hf://org/repo\n", "control character"),
        ("hf://org/\ud800", "Unicode"),
        ("hf://" + "x" * 5000, "longer than 4096"),
    ],
)
def test_what_is_no_source_is_refused_with_a_way_on(text: str, hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_source(text)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "https://user:hunter2@host/x",
        "sftp://user:hunter2@host/x",
        "https://:hunter2@host/x",
        "nosuch://user:hunter2@host/x",
        "https://host/x?X-Amz-Signature=hunter2",
        "https://host/x?a=1&sig=hunter2",
        "https://host/x?token=hunter2",
        "https://host/x y?token=hunter2",
        "nosuch://host/x?token=hunter2",
        "sftp://user:hunter2@host/\x00",
    ],
)
def test_a_secret_in_a_source_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_source(text)
    assert "hunter2" not in str(caught.value)


def test_key_leaves_out_the_revision_and_text_keeps_it() -> None:
    source = parse_source("hf://datasets/org/name@refs/pr/1")
    assert source.key == "hf://datasets/org/name"
    assert source.text == "hf://datasets/org/name@refs/pr/1"
    assert source.rest == "org/name"


@pytest.mark.parametrize(
    ("text", "pinned"),
    [
        (f"hf://o/r@{COMMIT}", True),
        (f"hf://o/r@{COMMIT[:-1]}", False),
        ("hf://o/r@main", False),
        ("hf://o/r", False),
        (f"s3://bucket/{COMMIT}", False),
    ],
)
def test_only_a_full_commit_is_pinned(text: str, pinned: bool) -> None:
    assert parse_source(text).pinned is pinned


@pytest.mark.parametrize("scheme", BUCKET_SCHEMES)
def test_a_prefix_is_the_same_with_and_without_its_slash(scheme: str) -> None:
    assert parse_source(f"{scheme}://a.b/c") == parse_source(f"{scheme}://a.b/c/")


def test_every_generic_scheme_is_one_fsspec_knows() -> None:
    assert set(GENERIC_SCHEMES) <= set(fsspec.available_protocols())


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        *((f"{scheme}://x", True) for scheme in SCHEMES),
        ("HF://x", True),
        ("bdn:a/b", True),
        ("spec.yaml", False),
        ("./hf:/x", False),
        ("org/repo", False),
        ("/a://b", False),
    ],
)
def test_a_source_is_told_from_a_path(text: str, meant: bool) -> None:
    assert is_source_text(text) is meant


@given(
    st.one_of(
        st.text(max_size=40),
        st.builds("{}://{}".format, st.sampled_from([*SCHEMES, "hF", "nosuch"]), st.text(max_size=40)),
        st.builds(
            "{}://{}".format,
            st.sampled_from(SCHEMES),
            st.text(alphabet="ab/@:?#%[].-_ 0", max_size=30),
        ),
    )
)
def test_any_text_is_a_source_or_a_spec_error(text: str) -> None:
    try:
        source = parse_source(text)
    except SpecError:
        return
    assert parse_source(source.text) == source
    assert parse_source(source.key) == Source(source.scheme, source.rest, None, source.kind)
    assert is_source_text(source.text)


@pytest.mark.parametrize(
    ("text", "key", "revision", "pinned"),
    [
        ("bdn:Team/Volume", "bdn:team/volume", None, False),
        ("bdn:team/volume:v1", "bdn:team/volume", "v1", False),
        ("bdn:team/volume:v1/sub/a%20b", "bdn:team/volume/sub/a%20b", "v1", False),
        (f"bdn:team/volume@{'0a' * 6}", "bdn:team/volume", f"b3:{'0a' * 6}", False),
        (f"bdn:team/volume@b3:{'0a' * 32}/x", "bdn:team/volume/x", f"b3:{'0a' * 32}", True),
    ],
)
def test_a_volume_is_a_source(text: str, key: str, revision: str | None, pinned: bool) -> None:
    source = parse_source(text)
    assert (source.key, source.revision, source.pinned) == (key, revision, pinned)
    assert parse_source(source.text) == source
