import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdnfs.core.errors import UpstreamError
from bdnfs.manifest.paths import NAME_BYTES_MAX, PATH_BYTES_MAX, check_path, check_tree

PATHS = st.lists(st.sampled_from(["a", "b", "a.b", "A"]), min_size=1, max_size=4).map("/".join)


@pytest.mark.parametrize(
    "path",
    [
        "config.json",
        "a/b/c.safetensors",
        ".gitattributes",
        "...",
        "a b",
        "naïve/模型.bin",
        "a\\b",
        "-rf",
        "x" * NAME_BYTES_MAX,
        "é" * (NAME_BYTES_MAX // 2),
        "/".join(["d" * 200] * 10),
    ],
)
def test_names_linux_can_hold_pass_unchanged(path: str) -> None:
    assert check_path(path, "hf://o/r") == path


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "component"),
        ("/etc/passwd", "absolute"),
        ("//x", "absolute"),
        ("../x", "component"),
        ("a/../../x", "component"),
        ("a/..", "component"),
        ("./a", "component"),
        ("a//b", "component"),
        ("a/", "component"),
        ("a\x00b", "control"),
        ("a\nb", "control"),
        ("a\x7f", "control"),
        ("\udc80", "Unicode"),
        ("x" * (NAME_BYTES_MAX + 1), "longer"),
        ("é" * (NAME_BYTES_MAX // 2 + 1), "longer"),
        ("/".join(["d"] * PATH_BYTES_MAX), "longer"),
        ("x" * 10**6, "longer"),
    ],
)
def test_hostile_names_are_refused_with_the_reason(path: str, reason: str) -> None:
    with pytest.raises(UpstreamError, match=reason) as caught:
        check_path(path, "hf://o/r")
    message = str(caught.value)
    assert message.startswith("hf://o/r: ")
    assert len(message) < 500
    assert message.isprintable()


@given(st.text(alphabet=st.characters(), max_size=30))
def test_what_passes_never_leaves_its_tree(path: str) -> None:
    try:
        check_path(path, "w")
    except UpstreamError:
        return
    assert path
    assert not path.startswith("/")
    assert not {"", ".", ".."} & set(path.split("/"))
    assert "\x00" not in path
    path.encode()


def test_the_same_path_twice_is_refused() -> None:
    with pytest.raises(UpstreamError, match="'a/b' twice"):
        check_tree(["a/b", "c", "a/b"], "w")


@pytest.mark.parametrize("paths", [["a", "a/b"], ["a/b", "a"], ["a/b/c/d", "a/b"]])
def test_a_file_that_is_a_directory_too_is_refused(paths: list[str]) -> None:
    with pytest.raises(UpstreamError, match="both as a file and as a directory"):
        check_tree(paths, "w")


def test_names_that_differ_only_in_case_are_two_files() -> None:
    check_tree(["README.md", "readme.md", "a/x", "A/x"], "w")


@given(st.lists(PATHS, max_size=8))
def test_a_tree_passes_exactly_if_it_can_be_made(paths: list[str]) -> None:
    possible = len(set(paths)) == len(paths) and not any(
        one.startswith(other + "/") for one in paths for other in paths
    )
    if possible:
        check_tree(paths, "w")
    else:
        with pytest.raises(UpstreamError):
            check_tree(paths, "w")
