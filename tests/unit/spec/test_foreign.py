"""A config.py and a truss config.yaml as specs."""

import sys
from pathlib import Path

import pytest

from bdnfs.core.errors import SpecError
from bdnfs.spec.load import load_spec

CONFIG = """
from truss.base.truss_config import WeightsSource
from truss_train import Image, TrainingJob, TrainingProject

project = TrainingProject(
    name="p",
    job=TrainingJob(
        image=Image(base_image="i"),
        weights=[
            WeightsSource(source="hf://org/repo@main", mount_location="/app/m", ignore_patterns=["*.md"], allow=1)
        ],
    ),
)
"""


def test_a_config_py_is_a_spec(tmp_path: Path) -> None:
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    spec = load_spec("config.py", cwd=str(tmp_path))
    (weights,) = spec.weights
    assert (weights.source.text, weights.mount_location) == ("hf://org/repo@main", "/app/m")
    assert weights.patterns.ignore == ("*.md",)
    assert spec.path == str(path)
    (said,) = spec.warnings
    assert said.startswith(
        "config.py:10: WeightsSource has no field 'allow', it is left out; did you mean 'allow_patt"
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("x = 1\n1/0", "config.py:2: raises ZeroDivisionError"),
        (CONFIG.replace("weights=[", "weights=[][:0] and ["), "declares no weights"),
        (CONFIG.replace('"/app/m"', '"/proc/m"'), "kernel's own trees"),
    ],
)
def test_a_config_py_that_is_none(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "config.py").write_text(content)
    with pytest.raises(SpecError, match=says):
        load_spec("config.py", cwd=str(tmp_path))


def test_without_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.py").write_text(CONFIG)
    monkeypatch.setitem(sys.modules, "pydantic", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pydantic" else object())
    with pytest.raises(SpecError, match=r"pydantic is missing\): pip install 'bdnfs\[trainer\]'"):
        load_spec("config.py", cwd=str(tmp_path))


def test_a_truss_config_yaml_is_a_spec(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "model_name: x\nsecrets: {hf_access_token: null}\nanything_else: 1\n"
        "weights:\n- {source: 'hf://org/repo', mount_location: /app/m}\n"
    )
    (weights,) = load_spec("config.yaml", cwd=str(tmp_path)).weights
    assert weights.mount_location == "/app/m"


def test_a_truss_config_yaml_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model_name: x\n")
    with pytest.raises(SpecError, match="expected a list of sources"):
        load_spec("config.yaml", cwd=str(tmp_path))


def test_what_is_no_truss_config_is_as_strict_as_before(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("weights: []\nwieghts: []\n")
    with pytest.raises(SpecError, match="wieghts: unknown key; did you mean 'weights'"):
        load_spec("spec.yaml", cwd=str(tmp_path))
