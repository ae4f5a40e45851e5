"""The trainer's own config: every key, and what is said of a wrong one."""

import json
from pathlib import Path

import pytest

from trainer.config import CheckpointStoreConfig, TrainerConfig, load_config
from trainer.errors import ConfigError


def read(path: Path, content: object, **environment: str) -> TrainerConfig:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return load_config({"TRAINER_CONFIG": str(path), "HOME": "/home/user", **environment})


def test_with_none_everything_has_a_default(tmp_path: Path) -> None:
    config = load_config({"HOME": str(tmp_path)})
    assert config.home == tmp_path / ".local/share/bdnfs-trainer"
    assert config == TrainerConfig(home=config.home)
    assert load_config({"HOME": str(tmp_path), "TRAINER_HOME": "/elsewhere"}).home == Path("/elsewhere")
    assert read(tmp_path / "empty.yaml", "").slots is None


def test_every_key_is_read(tmp_path: Path) -> None:
    content = """
home: /srv/trainer
slots: 3
gpus: 2
stop_grace: 1.5
checkpoints: {url: "s3://bucket/prefix", auth_secret_name: keys}
scratch: 1.5TiB
cache: 200GB
workspace: 1000
checkpoint_wait: 60
bdnfs_config: /etc/bdnfs/config.yaml
"""
    assert read(tmp_path / "config.yaml", content) == TrainerConfig(
        home=Path("/srv/trainer"),
        slots=3,
        gpus=2,
        stop_grace_s=1.5,
        checkpoints=CheckpointStoreConfig("s3://bucket/prefix", "keys"),
        scratch_bytes=3 << 39,
        cache_bytes=200 * 10**9,
        workspace_bytes=1000,
        checkpoint_wait_s=60,
        bdnfs_config=Path("/etc/bdnfs/config.yaml"),
    )
    assert read(tmp_path / "config.yaml", {"checkpoints": "/srv/kept"}).checkpoints == CheckpointStoreConfig(
        "/srv/kept"
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"slot": 1}, "slot: .*did you mean 'slots'"),
        ({"slots": 0}, "slots: .*from 1 to 1024, found 0"),
        ({"slots": True}, "slots"),
        ({"gpus": -1}, "gpus: .*from 0"),
        ({"home": "relative"}, "home: .*'/'"),
        ({"stop_grace": "soon"}, "stop_grace: .*seconds"),
        ({"scratch": "much"}, "scratch: .*1.5TiB"),
        ({"scratch": "5iB"}, "scratch"),
        ({"cache": None}, "cache"),
        ({"checkpoints": "bucket"}, "checkpoints: .*s3://bucket/prefix"),
        ({"checkpoints": {"uri": "s3://b"}}, "checkpoints: .*url"),
        ({"checkpoints": {"url": 3}}, "checkpoints: .*texts"),
        ("- 1", "expected keys"),
        ("{", "not valid YAML"),
    ],
)
def test_a_wrong_value_is_named_with_its_file_and_key(tmp_path: Path, content: object, says: str) -> None:
    path = tmp_path / "config.yaml"
    with pytest.raises(ConfigError, match=rf"{path}: .*{says}|{path}: {says}"):
        read(path, content)


def test_a_config_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path / "none.yaml")):
        load_config({"TRAINER_CONFIG": str(tmp_path / "none.yaml")})
