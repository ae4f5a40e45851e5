"""gpu, on a machine without one: skipped in words; everything but the GPU is tried on the CPU."""

import os
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import gpu_table
from benchmarks.loading import _checksum
from tests.unit.benchmarks.conftest import benchmark


@pytest.mark.timeout(300)
def test_without_a_gpu_it_says_so_and_succeeds(tmp_path: Path):
    found = benchmark("gpu", "--small", "--output", tmp_path, CUDA_VISIBLE_DEVICES="")
    assert list(found) == ["skipped"]
    assert "GPU" in found["skipped"]
    assert found["skipped"] in (tmp_path / "gpu.md").read_text()


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.skipif(os.geteuid() != 0, reason="taking mounting away needs root")
def test_where_nothing_can_be_mounted_it_loads_what_was_staged(tmp_path: Path):
    words = ("gpu", "--small", "--pairs", "1", "--device", "cpu", "--tokens", "4", "--directory", tmp_path)
    found = benchmark(
        *words, "--output", tmp_path, before=("setpriv", "--bounding-set", "-sys_admin"), OMP_NUM_THREADS="1"
    )
    assert found["delivered_by"] == "stage"
    assert found["not_mounted_because"]
    assert found["equal"] == {"weights": True, "tokens": True}
    assert found["hit"]["upstream_bytes"] == 0
    assert found["hit"]["tokens_per_s"] > 0
    assert len(found["raw"]["native_load_s"]) == len(found["raw"]["hit_load_s"]) == 1
    assert "bdnfs stage" in gpu_table(found)


def test_the_checksum_sees_one_bit_and_the_order():
    values = torch.arange(1, 9, dtype=torch.bfloat16).view(2, 4)
    changed = values.clone()
    changed.view(torch.int16)[1, 2] ^= 1
    assert _checksum(values) == _checksum(values.clone())
    assert len({_checksum(values), _checksum(changed), _checksum(values.flip(0))}) == 3
