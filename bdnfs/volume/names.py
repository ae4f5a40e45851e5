"""A source gets a volume's name, a branch a tag's."""

import re

from blake3 import blake3

from bdnfs.spec.volume import TAG, TAG_CHARS_MAX, VolumeRef

_SLUG_CHARS_MAX, _SLUG_HASH_DIGITS = 100, 10


def volume_of(source: str, selection: str, namespace: str) -> VolumeRef:
    """Return the volume that a source's mirror is, by the slug rule.

    source: canonical, without its revision (`hf://Qwen/Qwen3-0.6B`); selection: all that makes its content
    another one (source, endpoint, patterns). The name is the source in lower case without its scheme, `-`
    for every run of other characters, `v` before a digit, cut at 100 characters, and then the first ten hex
    digits of the selection's BLAKE3, so that no two share a name: `hf://Qwen/Qwen3-0.6B` is
    `bdn:weights/qwen-qwen3-0-6b-` and ten digits. All of a tenant's sources are in one namespace, for in the
    format objects belong to one: only so is what they have in common stored once.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", source.partition(":")[2].lower()).strip("-")
    slug = slug if slug[:1].isalpha() else f"v{slug}"
    mark = blake3(selection.encode()).hexdigest()[:_SLUG_HASH_DIGITS]
    return VolumeRef(namespace, f"{slug[:_SLUG_CHARS_MAX].rstrip('-')}-{mark}")


def tag_of(branch: str) -> str:
    """Return the tag that a branch's or an upstream tag's version gets: what no tag may hold becomes `-`."""
    tag = re.sub(r"[^A-Za-z0-9._-]", "-", branch)[:TAG_CHARS_MAX]
    return tag if TAG.fullmatch(tag) else f"_{tag}"[:TAG_CHARS_MAX]
