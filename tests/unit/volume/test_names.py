"""Refs are read as BDN's tools read them; a source's volume has a name of its own."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdnfs.core.errors import SpecError
from bdnfs.spec.volume import VolumeRef, parse_ref
from bdnfs.volume.names import tag_of, volume_of

DIGEST = "0123456789ab" * 5 + "cdef"


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("bdn:acme/model", VolumeRef("acme", "model")),
        ("bdn:Acme/Model", VolumeRef("acme", "model")),
        ("bdn:acme/model:v1.2_x", VolumeRef("acme", "model", tag="v1.2_x")),
        (f"bdn:acme/model@b3:{DIGEST}", VolumeRef("acme", "model", digest=DIGEST)),
        (f"bdn:acme/model@{DIGEST[:12].upper()}", VolumeRef("acme", "model", digest=DIGEST[:12])),
        ("bdn:acme/model/", VolumeRef("acme", "model")),
        ("bdn:acme/model:v1/sub/a%20b/", VolumeRef("acme", "model", tag="v1", path="sub/a b")),
    ],
)
def test_refs(text: str, ref: VolumeRef) -> None:
    assert parse_ref(text) == ref
    assert parse_ref(str(ref)) == ref


@pytest.mark.parametrize(
    "text",
    [
        "acme/model",
        "bdn://acme/model",
        "bdn:",
        "bdn:acme",
        "bdn:acme/m",
        "bdn:acme/0model",
        "bdn:acme/mo del",
        "bdn:acme/" + "m" * 257,
        "bdn:namespaces/model",
        "bdn:acme/objects",
        "bdn:acme/model:",
        "bdn:acme/model:a:b",
        "bdn:acme/model:" + "t" * 129,
        "bdn:acme/model@",
        "bdn:acme/model@b3:0123",
        "bdn:acme/model@" + "0" * 65,
        "bdn:acme/model@zzzzzzzzzzzz",
        "bdn:acme/model/a//b",
        "bdn:acme/model/../b",
        "bdn:acme/model/a%2f..",
        "bdn:acme/model/%2e%2e",
    ],
)
def test_what_is_no_ref(text: str) -> None:
    with pytest.raises(SpecError, match=re.escape(repr(text))):
        parse_ref(text)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf://Qwen/Qwen3-0.6B", "qwen-qwen3-0-6b"),
        ("hf://datasets/acme/tiny", "datasets-acme-tiny"),
        ("hf://01-ai/Yi", "v01-ai-yi"),
        ("s3://bucket/some/prefix", "bucket-some-prefix"),
        ("https://host:8443/é", "host-8443"),
    ],
)
def test_a_source_becomes_a_volume(source: str, name: str) -> None:
    assert re.fullmatch(f"bdn:weights/{name}-[0-9a-f]{{10}}", str(volume_of(source, source, "weights")))


@pytest.mark.parametrize(
    ("branch", "tag"), [("main", "main"), ("refs/pr/1", "refs-pr-1"), (".x", "_.x"), ("é", "_-")]
)
def test_a_branch_becomes_a_tag(branch: str, tag: str) -> None:
    assert tag_of(branch) == tag
    assert parse_ref(f"bdn:weights/model:{tag}").tag == tag


sources = st.builds(
    "{}://{}".format,
    st.sampled_from(["hf", "s3", "https"]),
    st.text(st.sampled_from("abAB01.-_/ é"), min_size=1, max_size=12).filter(lambda text: text[0] != "/"),
)


@given(st.lists(st.tuples(sources, st.sampled_from(["", "*.json"])), min_size=2, max_size=30, unique=True))
def test_no_two_share_a_name_and_each_is_one(pairs: list[tuple[str, str]]) -> None:
    refs = [volume_of(source, f"{source} {patterns}", "weights") for source, patterns in pairs]
    assert len(set(refs)) == len(refs)
    for ref in refs:
        assert parse_ref(str(ref)) == ref
