import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdnfs.core.errors import SpecError
from bdnfs.spec.load import load_spec, parse_spec
from bdnfs.spec.locations import absolute, check_apart, check_location, place
from bdnfs.spec.weights import Spec


def spec_of(*locations: str) -> Spec:
    return parse_spec(
        {"weights": [{"source": "hf://o/r", "mount_location": each} for each in locations]}, "spec.yaml"
    )


def placed(spec: Spec, mountpoint: str | None, root: str | None) -> list[tuple[str, bool]]:
    return [(each.location, each.outside) for each in place(spec, mountpoint, root)]


@pytest.mark.parametrize(
    ("locations", "mountpoint", "root", "expected"),
    [
        # Absolute ones stay; what is not below MOUNTPOINT is said.
        (["/app/models/a", "/app/data"], None, None, [("/app/models/a", False), ("/app/data", False)]),
        (
            ["/app/models/a", "/app/data"],
            "/app/models",
            None,
            [("/app/models/a", False), ("/app/data", True)],
        ),
        (["/app/models-2"], "/app/models", None, [("/app/models-2", True)]),
        (["/app/models"], "/app/models", None, [("/app/models", False)]),
        (["/app/m"], "/", None, [("/app/m", False)]),
        # Relative ones go below MOUNTPOINT, or below the root.
        (["a", "b/c"], "/app/models", None, [("/app/models/a", False), ("/app/models/b/c", False)]),
        (["a"], None, "/r", [("/r/a", False)]),
        # A root takes all of them, and MOUNTPOINT unless that is inside it already.
        (["/app/a", "b"], None, "/r", [("/r/app/a", False), ("/r/b", False)]),
        (["/app/a", "/data"], "/app", "/r", [("/r/app/a", False), ("/r/data", True)]),
        (["b"], "/app", "/r", [("/r/app/b", False)]),
        (["/app/a", "b"], "/r/app", "/r", [("/r/app/a", False), ("/r/app/b", False)]),
        (["b"], "/r", "/r", [("/r/b", False)]),
        (["/app/a"], "/app", "/", [("/app/a", False)]),
    ],
)
def test_where_a_spec_appears(
    locations: list[str], mountpoint: str | None, root: str | None, expected: list[tuple[str, bool]]
) -> None:
    assert placed(spec_of(*locations), mountpoint, root) == expected


@pytest.mark.parametrize(
    ("mountpoint", "root", "expected"),
    [
        ("/app/m", None, "/app/m"),
        ("/app/m", "/r", "/r/app/m"),
        ("/r/app/m", "/r", "/r/app/m"),
        (None, "/r", "/r"),
    ],
)
def test_one_source_is_at_the_mountpoint_itself(
    mountpoint: str | None, root: str | None, expected: str
) -> None:
    assert placed(load_spec("hf://o/r", mountpoint), mountpoint, root) == [(expected, False)]


def test_relative_arguments_are_taken_from_cwd() -> None:
    spec = load_spec("hf://o/r", "m", cwd="/work")
    assert [each.location for each in place(spec, "m", None, cwd="/work")] == ["/work/m"]
    with pytest.raises(SpecError, match="MOUNTPOINT 'm' is relative"):
        place(spec, "m", None)


@pytest.mark.parametrize(
    ("spec", "mountpoint", "root", "message"),
    [
        (spec_of("a"), None, None, "give MOUNTPOINT or --root"),
        (load_spec("hf://o/r"), None, None, "hf://o/r: nowhere to appear; give a MOUNTPOINT"),
        (spec_of("/app/a", "a"), "/app", None, "is there twice"),
        (spec_of("/app", "b"), "/app", None, "lies inside"),
        (spec_of("/app/a/b", "a"), "/app", None, "lies inside"),
        (spec_of("/a/b", "a"), None, "/r", "lies inside"),
        (spec_of("."), "/", None, "root directory"),
        (spec_of("a"), "/proc", None, "kernel's own"),
    ],
)
def test_what_can_not_be_placed_is_refused(
    spec: Spec, mountpoint: str | None, root: str | None, message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        place(spec, mountpoint, root)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("path", "normal"),
    [("/a", "/a"), ("/a/", "/a"), ("//a//b/./c", "/a/b/c"), ("a/./b/", "a/b"), ("/a b", "/a b")],
)
def test_locations_are_normalised(path: str, normal: str) -> None:
    assert check_location(path, "w") == normal


@pytest.mark.parametrize(
    "path",
    [
        *("", " ", "/", "//", "/.", "/..", "/a/..", "../a", "~", "~/m", "/a\x00", "/a\nb", "/\udc80"),
        *("/proc", "/proc/self", "/sys/x", "/dev/shm/m", "/" + "x" * 256, "/x" * 3000),
    ],
)
def test_locations_nothing_can_be_mounted_at_are_refused(path: str) -> None:
    with pytest.raises(SpecError, match=r"^w: mount_location ") as caught:
        check_location(path, "w")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("path", ["", "/a\x00b", "/\ud800"])
def test_arguments_that_are_no_path_are_refused(path: str) -> None:
    with pytest.raises(SpecError, match="--root"):
        absolute(path, "/", "--root")


PATHS = st.lists(st.sampled_from(["a", "b", "a-", "a.b"]), min_size=1, max_size=3).map(
    lambda parts: "/" + "/".join(parts)
)


@given(st.lists(PATHS, max_size=6))
def test_only_disjoint_directories_are_apart(paths: list[str]) -> None:
    apart = len(set(paths)) == len(paths) and not any(
        one.startswith(other + "/") for one in paths for other in paths
    )
    named = [(path, str(index)) for index, path in enumerate(paths)]
    if apart:
        check_apart(named, "w")
    else:
        with pytest.raises(SpecError):
            check_apart(named, "w")


@given(
    st.text(max_size=12) | st.text(alphabet="ab/.~ ", max_size=12),
    st.sampled_from([None, "/", "/app", "/r/app"]),
)
def test_whatever_is_placed_under_a_root_is_below_it(location: str, mountpoint: str | None) -> None:
    try:
        (each,) = place(spec_of(location), mountpoint, "/r")
    except SpecError:
        return
    # `.` without a MOUNTPOINT is the root itself.
    assert f"{each.location}/".startswith("/r/")
    assert ".." not in each.location.split("/")
