"""The examples, as `trainer init` writes them, run as jobs: small, on a CPU, against servers of our own."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.models import write_model
from benchmarks.servers.hub import HubServer
from tests.contract.gcs import GcsSite
from tests.contract.servers import S3Site, child
from tests.credentials.servers import GoogleServer
from tests.trainer.home import Home
from tests.trainer.stores import service_account
from trainer.jobs.states import State

# Importing torch and transformers alone takes many seconds where others work, too.
pytestmark = pytest.mark.timeout(600)
JOB_S = 300.0
SAMPLE = Path(__file__).parents[2] / "trainer/examples/shared/sample.jsonl"
ROWS = {"part/train.jsonl": SAMPLE.read_bytes(), "more.txt": b"One text, in a file of its own.\n" * 20}
TINY_STEPS = "--small --steps 1"


@pytest.fixture
def examples(home: Home, hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home whose Hub has a small model by the name that the examples use, and a directory of secrets."""
    model = write_model(tmp_path_factory.getbasetemp() / "small-model", small=True)
    hub.commit("Qwen/Qwen3-0.6B", {path.name: path.read_bytes() for path in model.iterdir()})
    (home.node.place / "secrets").mkdir(mode=0o700)
    home.node.configure(secrets={"directory": str(home.node.place / "secrets")})
    home.configure(scratch="64MiB")
    return home


def secret(home: Home, name: str, value: str) -> None:
    (home.node.place / "secrets" / name).write_text(value)


def init(home: Home, name: str) -> Path:
    """Write an example; return its config's path."""
    directory = home.node.place / name
    home.run("init", "--examples", name, "--target-directory", directory)
    return directory / "config.py"


def ran(home: Home, config: Path, *options: object, **environment: str) -> tuple[str, list[dict[str, Any]]]:
    """Push, wait until the job has completed; return its id and what train.py said."""
    # Two threads on two cores that others want as well wait for each other, spinning: seven times as long.
    environment = {"OMP_NUM_THREADS": "1", **environment}
    pushed = home.start("push", config, "--accelerator", "none", "--tail", *options, **environment)
    done = pushed.wait(None, JOB_S)
    job = done.err.partition("job ")[2].partition(" ")[0]
    assert done.code == 0, done.err + done.out + home.all_about(job)
    assert home.job(job).state is State.COMPLETED
    return job, [json.loads(line) for line in home.log(job) if line.startswith("{")]


def test_qwen_from_delivered_weights_and_data_learns_and_goes_on(examples: Home, hub: HubServer) -> None:
    home, bucket = examples, S3Site()
    with child(bucket.argv, bucket.port):
        bucket.put("train", ROWS)
        keys = {"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "hidden-key"}
        secret(home, "aws_credentials", json.dumps({**keys, "aws_region": "us-east-1"}))
        config = init(home, "qwen3-0.6b-bdn-weights")
        there = {"DATASET": "s3://models/train", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{bucket.port}"}

        small = "python train.py --small --learning-rate 1e-3"
        # By its name, and with no network: what is mounted is where the Hub's own library looks.
        by_name = f"HF_HUB_OFFLINE=1 {small} --model Qwen/Qwen3-0.6B"
        job, said = ran(home, config, "--entrypoint", by_name, **there)
        losses = [line["loss"] for line in said if "loss" in line]
        assert said[0]["model"] == "Qwen/Qwen3-0.6B"
        assert said[0]["resumed_at"] == 0
        assert len(losses) == 20
        assert sum(losses[-5:]) < 0.9 * sum(losses[:5]), losses
        assert [line["checkpoint"] for line in said if "checkpoint" in line] == [
            "checkpoint-10",
            "checkpoint-20",
        ]
        assert home.job(job).sync == "COMPLETED"

        hub.reset()
        again, said = ran(home, config, "--entrypoint", f"{small} --steps 1", RESUME_FROM=job, **there)
        assert said[0]["resumed_at"] == 20
        assert [line["step"] for line in said if "loss" in line] == [21]
        assert said[1]["loss"] < losses[0] * 0.9
        assert hub.bytes_sent == 0  # the node had the weights
        assert again != job


def loads_once(home: Home, config: Path, **environment: str) -> None:
    """Run an example that loads its own data twice: the second job finds it in the training cache."""
    job, said = ran(home, config, TRAIN_OPTIONS=TINY_STEPS, **environment)
    assert any("fetched into the training cache" in line for line in home.log(job))
    assert [line["step"] for line in said if "loss" in line] == [1]
    again, said = ran(home, config, "--entrypoint", "python load_data.py", **environment)
    assert any("in the training cache already" in line for line in home.log(again))
    assert "hidden" not in "\n".join([*home.log(job), *home.log(again)])


def test_data_from_s3(examples: Home) -> None:
    home, bucket = examples, S3Site()
    with child(bucket.argv, bucket.port):
        bucket.put("rows", ROWS)
        secret(home, "aws_access_key_id", "AKIDEXAMPLE")
        secret(home, "aws_secret_access_key", "hidden-key")
        there = {
            "DATA_URL": "s3://models/rows",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{bucket.port}",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        loads_once(home, init(home, "data-from-s3"), **there)


def test_data_from_the_hub(examples: Home, hub: HubServer) -> None:
    hub.commit("acme/rows", {"train.jsonl": SAMPLE.read_bytes()}, kind="datasets")
    hub.repository("acme/rows", kind="datasets").private = True
    secret(examples, "hf_access_token", hub.token("hf_hidden", reads=["acme/rows"]))
    loads_once(examples, init(examples, "data-from-huggingface"), DATASET="acme/rows")


def test_data_from_gcs(examples: Home) -> None:
    home, bucket = examples, GcsSite()
    with GoogleServer() as google, child(bucket.argv, bucket.port):
        bucket.put("rows", ROWS)
        secret(home, "gcp_service_account", service_account(f"{google.url}/token"))
        there = {
            "DATA_URL": "gs://models/rows",
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{bucket.port}",
        }
        loads_once(home, init(home, "data-from-gcs"), **there)
        assert google.asked  # it was the key of the secret that opened the bucket
