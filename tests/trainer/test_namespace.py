"""What a job sees: places of its own, in namespaces where they are to be had, and said where they are not."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.commands.conftest import TINY
from tests.commands.node import ROOT, Node
from tests.commands.test_unprivileged import USER, interpreter
from tests.trainer.home import Home
from trainer.engine import places
from trainer.jobs.states import State


def test_weights_are_found_by_their_name_without_a_network(home: Home) -> None:
    code = "from huggingface_hub import snapshot_download as s; print('at', s('acme/tiny'))"
    weights = [{"source": "hf://acme/tiny", "mount_location": f"{home.node.m}/w"}]
    config = home.config(
        f'{sys.executable} -c "{code}"', "echo offline $HF_HUB_OFFLINE",
        f'cmp "$({sys.executable} -c "from huggingface_hub import hf_hub_download as d; '
        f"print(d('acme/tiny', 'model.safetensors'))\")\" {home.node.m}/w/model.safetensors",
        weights=weights, variables="'HF_HUB_OFFLINE': '1'",
    )  # fmt: skip
    job = home.completes(config)
    assert any(line.startswith("at ") and "models--acme--tiny" in line for line in home.log(job))
    assert not home.directory(job).hub.exists()
    # What the spec does not name may still be asked for, and who says where it is to be is not overruled.
    plain = home.config(
        "echo offline ${HF_HUB_OFFLINE} at ${HF_HUB_CACHE-nowhere} in $HF_HOME",
        weights=weights, variables="'HF_HOME': '/tmp/hub'",
    )  # fmt: skip
    assert "offline 0 at nowhere in /tmp/hub" in home.log(home.completes(plain))


def test_a_job_sees_its_own_processes_alone(home: Home) -> None:
    job = home.completes(
        home.config(
            "echo pids $(ls /proc | grep -c ^[0-9]); echo first $(cat /proc/1/comm)",
            "! ls -l /proc/self/fd | grep run.lock",
        )
    )
    (count,) = [int(line.split()[1]) for line in home.log(job) if line.startswith("pids")]
    assert count < 10


def test_weights_inside_the_workspace_and_a_place_that_exists_on_the_host(home: Home) -> None:
    """Places come first, weights on top of them; a host's own directory is hidden for the job alone."""
    base = home.node.place / "base"
    (base / "user_artifacts").mkdir(parents=True)
    (base / "user_artifacts" / "hosts").touch()
    config = home.config(
        "cat /b10/workspace/models/tiny/config.json; ls -A $BT_PROJECT_CACHE_DIR; echo listed",
        weights=[{"source": "hf://acme/tiny", "mount_location": "/b10/workspace/models/tiny"}],
        runtime=f"cache_config=d.CacheConfig(enabled=True, mount_base_path={str(base)!r}),",
    )
    log = home.log(home.completes(config))
    assert TINY["config.json"].decode().strip() in log
    assert "hosts" not in log
    assert (base / "user_artifacts" / "hosts").exists()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(places, "registry", lambda: tmp_path / "registry")
    return tmp_path


def test_places_are_made_and_given_back_when_nobody_mounts_on_them(registry: Path) -> None:
    deep = registry / "b10" / "workspace"
    with places.making([str(deep)]):
        assert deep.is_dir()
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs x {deep} && echo up && read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"up\n"
        places.give_back()
        assert deep.is_dir()  # another job's
        assert holder.stdin is not None
        holder.stdin.close()
    (deep.parent / "kept").touch()
    places.give_back()
    assert not deep.exists()
    assert deep.parent.is_dir()  # somebody put something there
    (deep.parent / "kept").unlink()
    places.give_back()
    assert not deep.parent.exists()


def test_a_place_that_is_a_file_is_named(registry: Path) -> None:
    (registry / "file").touch()
    with (
        pytest.raises(places.PlaceError, match=rf"{registry}/file.*no directory"),
        places.making([str(registry / "file")]),
    ):
        pass


@pytest.fixture
def unprivileged(nodes: Callable[..., Node]) -> Iterator[Home]:
    program = interpreter()
    if program is None:
        pytest.skip("no Python here that another user may start and that has what bdnfs needs")
    node = nodes(user=USER)
    site = next(path for path in sys.path if path.endswith("site-packages"))
    node.environment["PYTHONPATH"] = f"{ROOT}:{site}"
    made = Home(node)
    made.program = [program, "-m", "trainer.cli"]
    yield made
    made.end()


def test_an_ordinary_user_has_namespaces_and_is_told_where_things_are(unprivileged: Home) -> None:
    home = unprivileged
    if shutil.which("unshare") is None:
        pytest.skip("unshare is missing")
    weights = [{"source": "hf://acme/tiny", "mount_location": f"{home.node.m}/w"}]
    config = home.config(
        f"cat {home.node.m}/w/config.json; touch $BT_SCRATCH_DIR/x $BT_WORKING_DIR/y; echo in $PWD",
        weights=weights, runtime="checkpointing_config=d.CheckpointingConfig(enabled=True),",
    )  # fmt: skip
    job = home.push(config)
    home.reaches(job, State.COMPLETED)
    log = home.log(job)
    assert TINY["config.json"].decode().strip() in log
    assert f"in {home.directory(job).workspace}" in log
    assert any("instead of /b10/workspace" in line for line in log)
    assert not home.everything_of(job)


def test_without_any_namespace_a_job_without_weights_still_runs_and_leaves_nothing(
    unprivileged: Home,
) -> None:
    home = unprivileged
    tools = home.node.place / "tools"
    tools.mkdir()
    for name in ("bash", "sh", "sleep", "setsid", "cat", "ls"):  # no `unshare`
        found = shutil.which(name)
        assert found is not None
        (tools / name).symlink_to(found)
    home.node.environment["PATH"] = str(tools)
    job = home.push(home.config("setsid sleep 600 &", "touch $BT_SCRATCH_DIR/x; echo in $PWD", "exit 3"))
    found_job = home.reaches(job, State.FAILED)
    log = home.log(job)
    assert found_job.exit_code == 3
    assert f"in {home.directory(job).workspace}" in log
    assert any("no right to a namespace" in line for line in log)
    assert any("plain directory" in line for line in log)
    assert not home.everything_of(job)
    home.configure(stop_grace=0.5)
    deaf = home.push(home.config("trap '' TERM; echo up; while :; do sleep 1; done"))
    home.says(deaf, "up")
    home.run("stop", deaf)
    assert home.job(deaf).state is State.STOPPED
    assert not home.everything_of(deaf)
