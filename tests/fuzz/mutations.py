"""Inputs that are nearly right: those get deepest into a parser."""

from collections.abc import Sequence

from hypothesis import strategies as st

# What means something to one of the parsers, or to what lies below them.
_TOKENS = (
    *(b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", "\u2028".encode(), b"\r\n", b"\x1b[2J", b"\t", b"\n"),
    *(
        b"..",
        b"/",
        b"../../etc/passwd",
        b"%2e%2e",
        b"~",
        b"*",
        b"**",
        b"[",
        b"]",
        b"[!",
        b"{",
        b"}",
        b"{a,b}",
    ),
    *(
        b"!!python/object/apply:os.system [x]",
        b"!!timestamp 1",
        b"&a ",
        b"*a",
        b"<<: *a",
        b"? ",
        b"- ",
        b"---",
    ),
    *(b"0x", b"1e999", b".inf", b".nan", b"-1", b"9" * 40, b"9" * 5000, b"1_000", b"0o17", b"1:30"),
    *(
        b"[" * 2000,
        b"{" * 2000,
        b'{"a":' * 500,
        b"null",
        b"true",
        b"~",
        b'"',
        b"'",
        b"\\u0000",
        b"\\ud800",
        b"\\",
    ),
    *(
        b"hf://",
        b"s3://",
        b"file:///",
        b"@",
        b"#",
        b"?token=x",
        b":",
        b"//",
        b"[::1",
        b"%zz",
        b"weights",
        b"source",
    ),
)
NEAR = st.sampled_from(_TOKENS) | st.binary(max_size=8)


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Draw one of the seeds with a few pieces cut out, doubled, moved or put in."""
    found = bytearray(draw(st.sampled_from(list(seeds))))
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, len(found)))
        stop = min(len(found), start + draw(st.integers(0, 40)))
        match draw(st.integers(0, 3)):
            case 0:
                del found[start:stop]
            case 1:
                found[start:start] = found[start:stop] * draw(st.integers(1, 30))
            case 2:
                found[start:stop] = draw(NEAR)
            case _:
                found[start:start] = draw(NEAR)
    return bytes(found)


# Any JSON there is, including what only Python's own numbers hold.
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(["..", "a/../b", "/etc/passwd", "a\0b", "a\nb", "x" * 300, "a" * 40, "main", "file"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
