"""`trainer init` and `trainer check`, by the real command: what users read, and what scripts do."""

import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.commands.node import TOKEN
from tests.trainer.home import Home
from trainer.cli.commands import trainer
from trainer.cli.tables import Column, Table
from trainer.errors import ConfigError
from trainer.examples.catalog import catalog, write_example
from trainer.loading import load_config, preflight

EXAMPLES = ["data-from-gcs", "data-from-huggingface", "data-from-s3", "qwen3-0.6b-bdn-weights"]
WEIGHTS = {
    "source": "hf://acme/tiny@main",
    "mount_location": "/app/tiny",
    "auth_secret_name": "hf_access_token",
}


def test_the_examples_are_listed(home: Home) -> None:
    assert [each.name for each in catalog()] == EXAMPLES
    listed = home.run("init", "--list-examples").out
    assert all(name in listed for name in EXAMPLES)
    rows = home.run("init", "--list-examples", "-o", "json").json
    assert [row["name"] for row in rows] == EXAMPLES
    table = list(csv.DictReader(io.StringIO(home.run("init", "--list-examples", "-o", "csv").out)))
    assert table == rows


def test_an_example_is_written_and_nothing_overwritten(home: Home, tmp_path: Path) -> None:
    said = home.run(
        "init", "--examples", "qwen3-0.6b-bdn-weights", "--target-directory", tmp_path / "mine"
    ).out
    assert "trainer push" in said
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        "config.py",
        "sample.jsonl",
        "train.py",
    ]
    (tmp_path / "mine" / "train.py").write_text("mine")
    done = home.run(
        "init", "--examples", "qwen3-0.6b-bdn-weights", "--target-directory", tmp_path / "mine", code=2
    )
    assert "config.py, sample.jsonl, train.py already" in done.err
    assert (tmp_path / "mine" / "train.py").read_text() == "mine"
    done = home.run("init", "--examples", "qwen3-0.6b-bdn", code=2)
    assert done.err == (
        "trainer: there is no example 'qwen3-0.6b-bdn'; did you mean 'qwen3-0.6b-bdn-weights'?\n"
    )
    assert "--list-examples" in home.run("init", code=2).err


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_loads_as_it_is(name: str, tmp_path: Path) -> None:
    loaded = load_config(write_example(name, str(tmp_path / name)) / "config.py")
    assert loaded.warnings == ()
    assert loaded.project.job.runtime.checkpointing_config.enabled
    assert loaded.project.job.weights[0].source == "hf://Qwen/Qwen3-0.6B@main"
    secrets = Path(tmp_path, "secrets")
    secrets.mkdir()
    for secret in ("aws_access_key_id", "aws_secret_access_key", "hf_access_token", "gcp_service_account"):
        (secrets / secret).write_text("x")
    node = tmp_path / "bdnfs.yaml"
    node.write_text(json.dumps({"secrets": {"directory": str(secrets)}}))
    notes = preflight(loaded, environment={}, bdnfs_config=str(node))
    assert any("the image pytorch/pytorch" in note for note in notes)  # said, not ignored


def test_check_prints_the_resolved_job(home: Home) -> None:
    config = home.config(
        "python train.py",
        weights=[WEIGHTS],
        variables='"TOKEN": d.SecretReference(name="hf_access_token"), "A": "b"',
        accelerator='"H100:8"',
    )
    done = home.run(
        "check", config, "--no-gpu-check", "--job-name", "mine", "--priority", 7, "--entrypoint", "python other.py",
        "--accelerator", "L4:2", TRUSS_SECRET_hf_access_token=TOKEN,
    )  # fmt: skip
    found = done.json
    assert (found["project"], found["job"]["name"], found["job"]["priority"]) == ("project", "mine", 7)
    assert found["job"]["compute"]["accelerator"] == {"accelerator": "L4", "count": 2}
    assert found["job"]["runtime"]["start_commands"] == ["python other.py"]
    assert found["job"]["runtime"]["environment_variables"]["TOKEN"] == {"name": "hf_access_token"}
    assert found["secrets"] == [{"name": "hf_access_token", "for": "weights[0] (hf://acme/tiny@main)"}]
    assert found["gpus"] == {"wanted": 2, "kind": "L4", "here": [], "checked": False}
    assert any("the image pytorch/pytorch:2 is not used" in note for note in found["notes"])
    assert not home.path.exists()  # it submits nothing, and keeps nothing


def test_every_missing_secret_is_named_before_anything_is_fetched(home: Home) -> None:
    config = home.config(
        "true", weights=[WEIGHTS], variables='"WANDB": d.SecretReference(name="wandb_api_key")'
    )
    for command in ("check", "push"):
        done = home.run(command, config, code=3)
        assert "weights[0] (hf://acme/tiny@main): the secret 'hf_access_token' is neither" in done.err
        assert "environment_variables['WANDB']: the secret 'wandb_api_key' is neither" in done.err
    assert not list(home.path.glob("jobs/*"))


def test_gpus_that_are_not_there(home: Home) -> None:
    config = home.config("true", accelerator='"H100:8"')
    assert "8 × H100" in home.run("check", config, code=2).err
    assert "H100:8" not in home.run("check", config, "--accelerator", "none").out
    assert "names no known GPU" in home.run("check", config, "--accelerator", "X100", code=2).err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('start_commands=["true"]', "start_commands=[]"), "start_commands is empty"),
        (('cpu_count=1', "node_count=2"), "has one machine"),
        (('memory="2Gi"', 'memory="lots"'), "no amount of memory"),
        (('"A": "b"', '"BT_X": "b"'), "is for the trainer to set"),
        (('"A": "b"', '"A-B": "b"'), "can't name a variable"),
        (('"/app/tiny"', '"/app/tiny/../.."'), "holds '..'"),
        (('mount_location="/app/big"', 'mount_location="/app/tiny/big"'), "lies inside"),
        (('mount_location="/app/big"', 'mount_location="/app/tiny"'), "is there twice"),
        (("[]", 'd.LoopsCheckpoint.from_checkpoint("r", "c"),'), "Loops"),
        (('"/root/.cache"', '"relative"'), "mount_base_path 'relative'"),
    ],
)  # fmt: skip
def test_what_can_not_run_here(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    config = """
from truss_train import definitions as d
project = d.TrainingProject(name="p", job=d.TrainingJob(
    image=d.Image(base_image="i"),
    compute=d.Compute(cpu_count=1, memory="2Gi"),
    runtime=d.Runtime(
        start_commands=["true"],
        environment_variables={"A": "b"},
        cache_config=d.CacheConfig(mount_base_path="/root/.cache"),
        load_checkpoint_config=d.LoadCheckpointConfig(enabled=True, checkpoints=[[]]),
    ),
    weights=[
        d.WeightsSource(source="hf://acme/tiny", mount_location="/app/tiny"),
        d.WeightsSource(source="hf://acme/big", mount_location="/app/big"),
    ],
))
"""
    assert change[0] in config
    config = config.replace(*change, 1).replace("[[]]", "[]")
    (tmp_path / "config.py").write_text(config)
    result = CliRunner().invoke(trainer, ["check", str(tmp_path / "config.py")], env={"HOME": str(tmp_path)})
    assert result.exception is not None
    assert says in str(result.exception)
    assert not isinstance(result.exception, SystemExit)


def test_what_is_typed_wrong(home: Home, tmp_path: Path) -> None:
    assert "did you mean 'check'?" in home.run("chek", code=2).err
    (tmp_path / "config.py").write_text("from truss_train import Compute\nCompute(cpus=1)\n")
    said = home.run("check", tmp_path / "config.py", code=2).err
    assert said == "trainer: config.py:2: Compute.cpus: unknown field; did you mean 'cpu_count'?\n"


def test_a_table_in_each_format(capsys: pytest.CaptureFixture[str]) -> None:
    columns = (Column("name", "Name"), Column("bytes", "Size", lambda value: f"{value} B", right=True))
    table = Table(columns, [("[bold]a\x1b[2J", 5), ('b"c,', None)], empty="no rows")
    table.print("cli-table")
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["Name", "Size"]
    assert "[bold]a?[2J" in out
    assert "\x1b" not in out
    table.print("json")
    assert json.loads(capsys.readouterr().out)[1] == {"name": 'b"c,', "bytes": None}
    table.print("csv")
    assert list(csv.reader(io.StringIO(capsys.readouterr().out)))[2] == ['b"c,', ""]
    Table(columns, [], empty="no rows").print("cli-table")
    assert capsys.readouterr().out == "no rows\n"


def test_an_example_whose_place_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Not a directory"):
        write_example("data-from-s3", str(tmp_path / "file" / "x"))
