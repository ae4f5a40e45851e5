"""The model that stands in for a real one."""

import hashlib
import math
from pathlib import Path

import pytest

from benchmarks.models import CONFIG, TOKENS, shapes, write_model

FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "org" / "small", small=True)


def test_the_real_shape_is_1_19_gb_of_bf16():
    assert sum(2 * math.prod(shape) for _, shape in shapes(CONFIG)) == 1_192_099_840


def test_it_is_whole_small_and_the_same_each_time(model: Path, tmp_path: Path):
    again = write_model(tmp_path / "again", small=True)
    assert set(digests(model)) == FILES
    assert digests(again) == digests(model)
    assert 1 << 20 < (model / "model.safetensors").stat().st_size < 8 << 20
    assert [path.name for path in model.parent.iterdir()] == ["small"]


def test_it_is_written_once(model: Path):
    before = (model / "config.json").stat()
    assert write_model(model, small=True) == model
    assert (model / "config.json").stat() == before


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.models.CORPUS", tmp_path / "missing.txt")
    with pytest.raises(Exception, match="No such file"):
        write_model(tmp_path / "models" / "small", small=True)
    assert list((tmp_path / "models").iterdir()) == []


def test_transformers_loads_all_of_it_and_generates(model: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded, report = AutoModelForCausalLM.from_pretrained(model, dtype="auto", output_loading_info=True)
    assert {name: found for name, found in report.items() if found} == {}
    assert loaded.dtype == torch.bfloat16
    weights = loaded.lm_head.weight.detach()[:TOKENS].float()
    assert bool(weights.isfinite().all())
    assert 0.01 < float(weights.std()) < 0.02
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompt = tokenizer("A good carrier asks", return_tensors="pt")
    assert tokenizer.decode(prompt["input_ids"][0]) == "A good carrier asks"
    said = loaded.generate(**prompt, max_new_tokens=4, min_new_tokens=4)
    assert said.shape[1] == prompt["input_ids"].shape[1] + 4
    assert int(said.max()) < len(tokenizer) == TOKENS
    assert len(tokenizer.decode(said[0])) > len("A good carrier asks")
