"""An index damaged anywhere: the bytes that are shown are right, or there is a clear error and then they are."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.cache.stocked import WAIT_S, open_cache, python, stock
from tests.unit.cache.test_restored import bring

PAGE = 4096
MANY = {f"{number:03}": b"%d" % number for number in range(80)}
LOOK = """
import sys
from pathlib import Path
from bdnfs.core.errors import BdnfsError
from tests.storage.test_torn_index import MANY
from tests.unit.cache.test_restored import FILES, MANIFEST
from tests.unit.cache.stocked import *
try:
    cache = open_cache(Path(sys.argv[1]))
    pin = cache.pin(sys.argv[2])
    tree = cache.whole_tree(sys.argv[2])
    assert tree is None or shown(tree) == MANY
    snapshot, other = admit(cache, MANIFEST)
    assert shown(fill(cache, snapshot, FILES)) == FILES
    snapshot, other = admit(cache, manifest_of(MANY))
    assert shown(fill(cache, snapshot, MANY)) == MANY
    cache.evict(unused_since_s=0, dry_run=False)
except BdnfsError as error:
    print(error)
    sys.exit(3)
"""


def cut(data: bytearray, used: int, dice: random.Random) -> bytes:
    return bytes(data[: dice.randrange(used)])


def garbage(data: bytearray, used: int, dice: random.Random) -> bytes:
    start = dice.randrange(used // PAGE) * PAGE
    data[start : start + PAGE] = dice.randbytes(PAGE)
    return bytes(data)


def zeros(data: bytearray, used: int, dice: random.Random) -> bytes:
    start = dice.randrange(used // PAGE) * PAGE
    data[start : start + PAGE] = bytes(PAGE)
    return bytes(data)


def torn(data: bytearray, used: int, dice: random.Random) -> bytes:
    """A write that ended in a page's middle."""
    start = dice.randrange(used // PAGE) * PAGE + 512 * dice.randrange(1, 8)
    end = (start // PAGE + 1) * PAGE
    data[start:end] = bytes(end - start)
    return bytes(data)


def elsewhere(data: bytearray, used: int, dice: random.Random) -> bytes:
    """A write that went to another page's place."""
    source, target = (dice.randrange(used // PAGE) * PAGE for _ in range(2))
    data[target : target + PAGE] = data[source : source + PAGE]
    return bytes(data)


def noise(data: bytearray, used: int, dice: random.Random) -> bytes:
    return dice.randbytes(used)


@pytest.mark.parametrize(
    "seed", [1, pytest.param(2, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("damage", [cut, garbage, zeros, torn, elsewhere, noise])
def test_a_damaged_index_never_shows_wrong_bytes(
    tmp_path: Path, damage: Callable[[bytearray, int, random.Random], bytes], seed: int
) -> None:
    directory = tmp_path / "cache"
    cache = open_cache(directory)
    snapshot = stock(cache, MANY)
    bring(cache, 0)
    cache.close()
    index = directory / "index.lmdb"
    data = bytearray(index.read_bytes())
    index.write_bytes(damage(data, len(data.rstrip(b"\0")), random.Random(seed)))
    said = []
    for _ in range(3):  # LMDB may end the first, and the second finds why
        process = python(LOOK, directory, snapshot)
        out, err = process.communicate(timeout=WAIT_S)
        said.append(out + err)
        if process.returncode == 0:
            return
        assert process.returncode == 3 or process.returncode < 0, f"seed {seed}: {said}"
    raise AssertionError(f"seed {seed}: {said}")
