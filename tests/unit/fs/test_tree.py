"""The tree against a plain dictionary of paths."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdnfs.core.errors import SpecError
from bdnfs.fs.tree import Tree
from bdnfs.manifest.model import FileEntry, Manifest

ROOT = Path(__file__).parents[3]


def manifest(*paths: str) -> Manifest:
    files = tuple(FileEntry(path, size) for size, path in enumerate(paths, 1))
    return Manifest("test://x", "test", "1", files)


def listing(tree: Tree, inode: int = Tree.root, prefix: str = "") -> dict[str, tuple[str, int, int]]:
    """Return path → (part, file, size) of every file, checking each node on the way."""
    found = {}
    directories = 0
    children = tree.children(inode)
    assert children == sorted(children)
    for name, node in children:
        path = prefix + name.decode()
        assert tree.lookup(inode, name) == node == tree.node(node.inode)
        assert tree.parent(node.inode).inode == inode
        assert tree.path(node.inode) == path
        if node.is_directory:
            directories += 1
            found.update(listing(tree, node.inode, f"{path}/"))
        else:
            assert node.links == 1
            found[path] = (node.part, node.file, node.size)
    assert tree.node(inode).is_directory
    assert tree.node(inode).links == 2 + directories
    return found


names = st.text(st.sampled_from("ab.-/0é漢 "), min_size=1, max_size=5).filter(
    lambda path: all(path.split("/")) and not {".", ".."} & set(path.split("/"))
)


@st.composite
def listings(draw: st.DrawFn) -> list[str]:
    paths: list[str] = []
    for path in draw(st.lists(names, max_size=25)):
        taken = any(
            path == other or path.startswith(f"{other}/") or other.startswith(f"{path}/") for other in paths
        )
        if not taken:
            paths.append(path)
    return paths


@given(listings(), st.booleans(), st.sampled_from(["", "model", "models/org/name"]))
def test_every_path_is_found_where_it_belongs(paths: list[str], ordered: bool, directory: str) -> None:
    files = manifest(*(sorted(paths) if ordered else paths))
    tree = Tree({directory: files})
    prefix = f"{directory}/" if directory else ""
    expected = {prefix + entry.path: (directory, i, entry.size) for i, entry in enumerate(files.files)}
    assert listing(tree) == expected
    assert tree.total_bytes == files.total_bytes


@given(listings(), listings())
def test_parts_stand_side_by_side(one: list[str], other: list[str]) -> None:
    tree = Tree({"models/a": manifest(*one), "models/b": manifest(*other)})
    assert set(listing(tree)) == {f"models/a/{path}" for path in one} | {f"models/b/{path}" for path in other}


def test_a_directory_stands_before_a_file_that_only_begins_like_it() -> None:
    tree = Tree({"": manifest("a-b", "a.txt", "a/x", "a0")})
    assert [name for name, _ in tree.children(tree.root)] == [b"a", b"a-b", b"a.txt", b"a0"]


def test_listing_goes_on_from_any_entry() -> None:
    tree = Tree({"": manifest(*(f"{number:02}" for number in range(30)))})
    everything = tree.children(tree.root)
    assert [list(tree.entries(tree.root, skip)) for skip in range(32)] == [
        everything[skip:] for skip in range(32)
    ]


def test_absent_names_and_numbers() -> None:
    tree = Tree({"": manifest("b/c", "d")})
    for name in (b"", b"a", b"c", b"e", b"bb", b"\xff"):
        assert tree.lookup(tree.root, name) is None
    file = tree.lookup(tree.root, b"d")
    assert file is not None
    assert tree.lookup(file.inode, b"x") is None
    assert tree.children(file.inode) == []
    for inode in (-1, 0, len(tree) + 1):
        with pytest.raises(KeyError):
            tree.node(inode)


def test_the_root_lies_in_itself() -> None:
    tree = Tree({"a/b": manifest("c")})
    assert tree.parent(tree.root) == tree.node(tree.root)
    assert tree.path(tree.root) == ""


@pytest.mark.parametrize(
    "directories", [("", "a"), ("a", "a/b"), ("a/b", "a"), ("a", "a/"), ("a/b/c", "a/b")]
)
def test_parts_inside_each_other_are_refused(directories: tuple[str, str]) -> None:
    with pytest.raises(SpecError, match="overlap"):
        Tree({directory: manifest("x") for directory in directories})


def test_same_input_gives_the_same_numbers() -> None:
    paths = [f"d{number % 7}/f{number}" for number in range(100)]
    one, other = Tree({"m": manifest(*paths)}), Tree({"m": manifest(*reversed(paths))})
    assert set(listing(one)) == set(listing(other))
    assert [one.path(inode) for inode in range(1, len(one) + 1)] == [
        other.path(inode) for inode in range(1, len(other) + 1)
    ]


@pytest.mark.parametrize(
    "paths",
    ['f"d{i % 999:03}/x{i % 7}/file-{i:07}.jpg"', 'f"file-{i:07}.jpg"', 'f"d{i}/f"'],
    ids=["deep", "flat", "a directory each"],
)
def test_many_files_stay_lean(paths: str) -> None:
    """Measured in a process of its own: what the tree adds to the manifest it is built from."""
    code = f"""
import tracemalloc
from bdnfs.fs.tree import Tree
from bdnfs.manifest.model import FileEntry, Manifest
files = tuple(FileEntry({paths}, i) for i in range(40_000))
manifest = Manifest("test://x", "test", "1", files)
tracemalloc.start()
tree = Tree({{"": manifest}})
held, peak = tracemalloc.get_traced_memory()
assert len(tree) > 40_000
print(held // len(tree), peak // len(tree))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=100
    )
    held, peak = map(int, done.stdout.split())
    assert held < 70, "bytes per node that stay"
    assert peak < 400, "bytes per node while building"
