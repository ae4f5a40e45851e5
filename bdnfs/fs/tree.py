"""A read-only directory tree over manifests: inode numbers, names, sizes. Knows no FUSE.

A million files take some 30 bytes each beside their names: one array element per property, and
the children of a directory next to each other in name order, so that a lookup is a bisection.
"""

import operator
import os
import sys
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice, pairwise, starmap
from operator import itemgetter
from typing import NamedTuple

from bdnfs.core.errors import SpecError
from bdnfs.manifest.model import Manifest

ROOT = 1


class Node(NamedTuple):
    """A file or a directory.

    size:  bytes of a file; 0 for a directory
    links: 1 for a file, 2 + its subdirectories for a directory
    part:  the file's manifest: its key in the mapping the tree was built from; "" for a directory
    file:  the file's index in that manifest's files; -1 for a directory
    """

    inode: int
    is_directory: bool
    size: int
    links: int
    part: str
    file: int


class _Range(NamedTuple):
    """Files [start, stop) of a manifest's path order; their paths share the first `skip` characters."""

    part: int
    skip: int
    start: int
    stop: int


_Skeleton = dict[str, "_Skeleton | _Range"]


class Tree:
    """The directories of several manifests under one root, numbered from ROOT, breadth first."""

    root = ROOT

    def __init__(self, parts: Mapping[str, Manifest]) -> None:
        """parts: by relative directory, "" being the root; none may lie inside another."""
        self._parts = list(parts)
        self._manifests = list(parts.values())
        self._listings = [_listing(manifest) for manifest in self._manifests]
        # For inode i at index i - 1: a file's size, index and part; or a directory's first child,
        # number of children and, below zero, -1 - its subdirectories.
        self._value = array("q", [0])
        self._index = array("I", [0])
        self._kind = array("i", [-1])
        self._parent = array("I", [ROOT])
        self._name_end = array("Q", [0])
        self._names = bytearray()
        self._fill(self._skeleton())
        del self._listings

    def __len__(self) -> int:
        return len(self._value)

    @property
    def total_bytes(self) -> int:
        return sum(manifest.total_bytes for manifest in self._manifests)

    def node(self, inode: int) -> Node:
        """Return the node with this number; raise KeyError where there is none."""
        if not 0 < inode <= len(self._value):
            raise KeyError(inode)
        at = inode - 1
        kind = self._kind[at]
        if kind < 0:
            return Node(inode, True, 0, 1 - kind, "", -1)
        return Node(inode, False, self._value[at], 1, self._parts[kind], self._index[at])

    def parent(self, inode: int) -> Node:
        """Return the directory a node lies in; the root lies in itself."""
        return self.node(self._parent[inode - 1])

    def lookup(self, parent: int, name: bytes) -> Node | None:
        """Return directory parent's child of that name, or None."""
        low, high = self._children(parent)
        while low < high:
            middle = (low + high) // 2
            if self._name(middle) < name:
                low = middle + 1
            else:
                high = middle
        found = low < self._children(parent)[1] and self._name(low) == name
        return self.node(low) if found else None

    def children(self, inode: int) -> list[tuple[bytes, Node]]:
        """Return a directory's entries, sorted by name."""
        return list(self.entries(inode))

    def entries(self, inode: int, skip: int = 0) -> Iterator[tuple[bytes, Node]]:
        """Yield a directory's entries, sorted by name, from number skip on."""
        low, high = self._children(inode)
        return ((self._name(child), self.node(child)) for child in range(low + skip, high))

    def path(self, inode: int) -> str:
        """Return a node's path below the root, for messages."""
        names: list[bytes] = []
        while inode != ROOT:
            names.append(self._name(inode))
            inode = self._parent[inode - 1]
        return os.fsdecode(b"/".join(reversed(names)))

    def _children(self, inode: int) -> tuple[int, int]:
        at = inode - 1
        first = self._value[at]
        return (first, first + self._index[at]) if self._kind[at] < 0 else (0, 0)

    def _name(self, inode: int) -> bytes:
        return bytes(self._names[self._name_end[inode - 2] : self._name_end[inode - 1]])

    def _skeleton(self) -> "_Skeleton | _Range":
        """Return the directories that lead to the parts."""
        top: _Skeleton = {}
        for number, (directory, manifest) in enumerate(zip(self._parts, self._manifests, strict=True)):
            whole = _Range(number, 0, 0, len(manifest.files))
            names = [name for name in directory.split("/") if name]
            if not names and len(self._parts) == 1:
                return whole
            place: _Skeleton | _Range = top
            for name in names[:-1]:
                place = place.setdefault(name, {}) if isinstance(place, dict) else place
            if not isinstance(place, dict) or not names or names[-1] in place:
                raise SpecError(
                    f"the directories {', '.join(map(repr, self._parts))} of one tree overlap at "
                    f"{directory!r}; give each source a directory of its own"
                )
            place[names[-1]] = whole
        return top

    def _fill(self, top: "_Skeleton | _Range") -> None:
        pending: deque[tuple[int, _Skeleton | _Range]] = deque([(ROOT, top)])
        while pending:
            directory, content = pending.popleft()
            first = len(self._value) + 1
            below: list[tuple[bytes, _Skeleton | _Range]] = []
            if isinstance(content, dict):
                below = [(os.fsencode(name), child) for name, child in content.items()]
                for name, _ in below:
                    self._add(directory, name)
            else:
                below = self._add_files(directory, content)
            count = len(self._value) + 1 - first
            if below:  # `a.txt` comes before `a/b` in path order, but `a` before `a.txt` in a directory
                self._sort(first, count)
            self._value[directory - 1] = first
            self._index[directory - 1] = count
            self._kind[directory - 1] = -1 - len(below)
            below.sort(key=itemgetter(0))
            inodes = (inode for inode in range(first, first + count) if self._kind[inode - 1] < 0)
            pending.extend((inode, child) for inode, (_, child) in zip(inodes, below, strict=True))

    def _add_files(self, directory: int, content: _Range) -> list[tuple[bytes, "_Skeleton | _Range"]]:
        """Add a directory's files and subdirectories; return the subdirectories, still to be filled."""
        part, skip, at, stop = content
        files, (paths, order) = self._manifests[part].files, self._listings[part]
        add, encoding = self._add, sys.getfilesystemencoding()
        below: list[tuple[bytes, _Skeleton | _Range]] = []
        while at < stop:
            path = paths[at]
            slash = path.find("/", skip)
            if slash < 0:
                index = order[at]
                add(
                    directory, path[skip:].encode(encoding, "surrogateescape"), files[index].size, index, part
                )
                at += 1
                continue
            # Paths that share a prefix lie next to each other in path order, before prefix + "0".
            end = bisect_left(paths, path[:slash] + "0", at, stop)
            name = os.fsencode(path[skip:slash])
            add(directory, name)
            below.append((name, _Range(part, slash + 1, at, end)))
            at = end
        return below

    def _add(self, parent: int, name: bytes, value: int = 0, index: int = 0, kind: int = -1) -> None:
        self._value.append(value)
        self._index.append(index)
        self._kind.append(kind)
        self._parent.append(parent)
        self._names += name
        self._name_end.append(len(self._names))

    def _sort(self, first: int, count: int) -> None:
        """Bring the children just added into name order."""
        inodes = range(first, first + count)
        if all(starmap(operator.le, pairwise(map(self._name, inodes)))):
            return
        order = sorted(inodes, key=self._name)
        rows = [
            (self._parent[i - 1], self._name(i), self._value[i - 1], self._index[i - 1], self._kind[i - 1])
            for i in order
        ]
        for column in (self._value, self._index, self._kind, self._parent, self._name_end):
            del column[first - 1 :]
        del self._names[self._name_end[-1] :]
        for row in rows:
            self._add(*row)


class _Listing(NamedTuple):
    """A manifest's paths, sorted, and the index of each in its files."""

    paths: list[str]
    order: "range | array[int]"


def _listing(manifest: Manifest) -> _Listing:
    paths = [file.path for file in manifest.files]
    if all(map(operator.le, paths, islice(paths, 1, None))):
        return _Listing(paths, range(len(paths)))
    order = array("I", sorted(range(len(paths)), key=paths.__getitem__))
    return _Listing([paths[index] for index in order], order)
