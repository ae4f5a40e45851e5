"""A config.py written for truss_train loads unchanged; one that is wrong is named with file and line."""

import importlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from tests.commands.node import until
from trainer.definitions import Accelerator, SecretReference, TrainingProject
from trainer.errors import ConfigError
from trainer.loading import load_config, spec_of
from trainer.loading.execute import execute
from trainer.loading.shims import SHIMS, shimmed

GOOD = """
from truss_train import Image, TrainingJob, TrainingProject

project = TrainingProject(name="p", job=TrainingJob(image=Image(base_image="i")))
"""

# Every import that the reference names, and every way to reach a class.
WHOLE = """
import os
from pathlib import Path

import truss_train
import truss_train.definitions as td
from truss.base import truss_config
from truss.base.truss_config import Accelerator, AcceleratorSpec, WeightsAuth, WeightsSource
from truss_train import Compute, TrainingProject, definitions
from truss_train.definitions import SecretReference

HERE = Path(__file__).parent
print("a config may print")

project = TrainingProject(
    name="qwen",
    job=td.TrainingJob(
        image=definitions.Image(base_image="pytorch/pytorch:2.7.0-cuda12.8-cudnn9-runtime"),
        compute=Compute(
            accelerator=truss_config.AcceleratorSpec(accelerator=truss_config.Accelerator.H200, count=8),
            cpu_count=os.cpu_count() and 4,
        ),
        runtime=truss_train.Runtime(
            start_commands=["/bin/sh -c './run.sh'"],
            environment_variables={"HF_TOKEN": SecretReference(name="hf_access_token")},
            checkpointing_config=definitions.CheckpointingConfig(enabled=True),
            cache_config=definitions.CacheConfig(enabled=True),
        ),
        weights=[
            WeightsSource(
                source="hf://Qwen/Qwen3-0.6B@main",
                mount_location="/app/models/Qwen/Qwen3-0.6B",
                allow_patterns=["*.safetensors", "*.json"],
                auth=WeightsAuth(auth_method="CUSTOM_SECRET", auth_secret_name="hf_access_token"),
            )
        ],
    ),
)
assert Accelerator.H200 is truss_config.Accelerator.H200
assert AcceleratorSpec is truss_config.AcceleratorSpec
"""


def written(directory: Path, content: str, name: str = "config.py") -> Path:
    path = directory / name
    path.write_text(textwrap.dedent(content))
    return path


def refused(directory: Path, content: str) -> str:
    """Run the config in this process; return what is said against it."""
    path = written(directory, content)
    with pytest.raises(ConfigError) as caught:
        execute(str(path), path.read_bytes())
    return str(caught.value)


def refused_by_its_end(directory: Path, content: str, timeout_s: float = 60.0) -> str:
    """Run it in a process of its own, as a command does."""
    with pytest.raises(ConfigError) as caught:
        load_config(written(directory, content), timeout_s=timeout_s)
    return str(caught.value)


def test_every_import_of_the_reference(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loaded = load_config(written(tmp_path, WHOLE))
    project = loaded.project
    assert loaded.path == tmp_path / "config.py"
    assert loaded.warnings == ()
    assert project.job.compute.accelerator is not None
    assert project.job.compute.accelerator.accelerator is Accelerator.H200
    assert project.job.runtime.environment_variables == {"HF_TOKEN": SecretReference(name="hf_access_token")}
    assert spec_of(project) == {
        "weights": [
            {
                "source": "hf://Qwen/Qwen3-0.6B@main",
                "mount_location": "/app/models/Qwen/Qwen3-0.6B",
                "auth": {"auth_method": "CUSTOM_SECRET", "auth_secret_name": "hf_access_token"},
                "allow_patterns": ["*.safetensors", "*.json"],
            }
        ]
    }
    out, err = capfd.readouterr()
    assert (out, err) == ("", "a config may print\n")


def test_a_config_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    written(tmp_path, "NAME = 'beside'", "settings.py")
    config = "from settings import NAME\n" + GOOD.replace('"p"', "NAME")
    assert load_config(written(tmp_path, config)).project.name == "beside"


def test_nothing_is_left_of_the_shims(tmp_path: Path) -> None:
    with shimmed():
        for name in SHIMS:
            importlib.import_module(name)
    for name in SHIMS:
        assert name not in sys.modules
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)


def test_an_installed_truss_is_neither_used_nor_disturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("truss", "truss_train"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("MARK = 'installed'\n")
    (tmp_path / "truss_train" / "more.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    before = importlib.import_module("truss_train")
    try:
        with shimmed():
            inside: ModuleType = importlib.import_module("truss_train")
            assert inside.__dict__["TrainingProject"] is TrainingProject
            with pytest.raises(ModuleNotFoundError, match=r"truss_train\.more"):
                importlib.import_module("truss_train.more")
        assert sys.modules["truss_train"] is before
        assert importlib.import_module("truss").MARK == "installed"
    finally:
        for name in [each for each in sys.modules if each.partition(".")[0] in ("truss", "truss_train")]:
            del sys.modules[name]
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    config = tmp_path / "job"
    config.mkdir()
    assert load_config(written(config, GOOD)).project.name == "p"


def test_no_project(tmp_path: Path) -> None:
    said = refused(tmp_path, "x = 1")
    assert said.startswith("config.py: holds no TrainingProject")


def test_two_projects(tmp_path: Path) -> None:
    said = refused(tmp_path, GOOD + GOOD.replace("project =", "other ="))
    assert "holds 2 TrainingProjects, project (line 4), other (line 8); keep one" in said


def test_a_second_name_counts(tmp_path: Path) -> None:
    said = refused(tmp_path, GOOD + "\nsame = project\n")
    assert "holds 2 TrainingProjects, project (line 4), same (line 6); they are the same" in said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("x = 1\ndef (:\n", "config.py:2: is not Python: invalid syntax"),
        ("weights:\n  - source: x\n", "config.py:1: is not Python"),
        ("x = 1\n\nraise ValueError('no luck')\n", "config.py:3: raises ValueError: no luck"),
        ("import sys\nsys.exit(3)\n", "config.py:2: ends the interpreter"),
        ("import nowhere_to_be_found\n", "config.py:1: imports 'nowhere_to_be_found', which is not installed"),
        (
            "from truss_train import TrainingJb\n",
            "config.py:1: truss_train has no 'TrainingJb' here; did you mean 'TrainingJob'?",
        ),
        ("import truss_train as t\nt.definitions\nt.Imag\n", "truss_train has no"),
        ("import truss.chains\n", "config.py:1: there is no module 'truss.chains' here"),
        (
            "from truss_train import Compute\nx = 1\nCompute(\n    cpu_cuont=2,\n)\n",
            "config.py:3: Compute.cpu_cuont: unknown field; did you mean 'cpu_count'?",
        ),
        (
            "from truss_train import Runtime\nRuntime(environment_variables={'A': 5})\n",
            "config.py:2: Runtime.environment_variables.A: input should be a valid string, found the int 5",
        ),
        (
            "from truss_train import WeightsSource\nWeightsSource(source='s3://b/x@y', mount_location='/m')\n",
            "config.py:2: WeightsSource.source: source 's3://b/x@y': s3:// has no revisions",
        ),
        ("def f():\n    return f()\nf()\n", "config.py:2: raises RecursionError"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_file_and_line(tmp_path: Path, content: str, says: str) -> None:
    said = refused(tmp_path, content)
    assert says in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("1/0\n", "config.py:1: raises ZeroDivisionError"),
        ("import os\nos._exit(3)\n", "config.py: ended the interpreter with exit code 3"),
        ("import os\nos.kill(os.getpid(), 9)\n", "config.py: loading it was ended by signal 9"),
    ],
)
def test_one_that_ends_its_process(tmp_path: Path, content: str, says: str) -> None:
    assert refused_by_its_end(tmp_path, content).startswith(says)


def test_a_value_that_may_be_a_secret_is_not_shown(tmp_path: Path) -> None:
    said = refused(
        tmp_path, "from truss_train import Runtime\nRuntime(environment_variables={'A': ['hunter2']})\n"
    )
    assert "Runtime.environment_variables" in said
    assert "hunter2" not in said


def test_where_below_the_config_it_broke(tmp_path: Path) -> None:
    written(tmp_path, "def f():\n    raise KeyError('x')\n", "beside.py")
    assert refused(tmp_path, "import beside\nbeside.f()\n").startswith(
        "config.py:2 (at beside.py:2): raises KeyError"
    )


@pytest.mark.parametrize("content", ["x = 1\nwhile True: pass\n", "import time\ntime.sleep(1000)\n"])
def test_one_that_hangs_is_ended(tmp_path: Path, content: str) -> None:
    assert refused_by_its_end(tmp_path, content, timeout_s=1).startswith(
        "config.py:2: was still running after 1 s"
    )


def test_nothing_that_a_config_started_keeps_us(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    config = f"""
import pathlib, subprocess, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
pathlib.Path({str(pid)!r}).write_text(str(subprocess.Popen(["sleep", "1000"]).pid))
"""
    assert load_config(written(tmp_path, config + GOOD)).project.name == "p"
    until(lambda: not runs(int(pid.read_text())), "what the config started to end")


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_files_that_are_no_config(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.py")
    (tmp_path / "big.py").write_bytes(b"#" * ((1 << 20) + 1))
    (tmp_path / "bytes.py").write_bytes(b"\xff\xfe\x00")
    for name, says in {
        "missing.py": "No such file",
        "fifo.py": "not a regular file",
        "big.py": "over 1 MiB",
        "bytes.py": "is not Python",
        ".": "it is a directory",
    }.items():
        with pytest.raises(ConfigError, match=says):
            load_config(tmp_path / name)
    with pytest.raises(ConfigError, match=r"not a config\.py"):
        load_config(written(tmp_path, "weights: []", "spec.yaml"))


def test_the_weights_as_json_for_bdnfs(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "trainer.loading"]
    done = subprocess.run([*command, written(tmp_path, WHOLE)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert '"source": "hf://Qwen/Qwen3-0.6B@main"' in done.stdout
    done = subprocess.run([*command, written(tmp_path, "1/0")], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (2, "config.py:1: raises ZeroDivisionError: division by zero\n")
