"""Every class and field of the reference, with its default, and the same strictness."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from trainer import definitions as d

IMAGE = d.Image(base_image="python:3.11")

# shared/reference/bdn.md, "Training jobs": required fields as ..., the others with their default.
FIELDS: dict[type[BaseModel], dict[str, Any]] = {
    d.TrainingProject: {"name": ..., "job": ..., "team_name": None},
    d.TrainingJob: {
        "image": ...,
        "compute": d.Compute(),
        "runtime": d.Runtime(),
        "interactive_session": None,
        "name": None,
        "priority": None,
        "workspace": None,
        "weights": [],
        "enable_baseten_workdir": True,
    },
    d.Image: {"base_image": ..., "docker_auth": None},
    d.Compute: {
        "node_count": 1,
        "cpu_count": 1,
        "memory": "2Gi",
        "accelerator": None,
        "availability_model": d.AvailabilityModel.DEDICATED,
    },
    d.AcceleratorSpec: {"accelerator": None, "count": 1},
    d.Runtime: {
        "start_commands": [],
        "environment_variables": {},
        "enable_cache": None,
        "checkpointing_config": d.CheckpointingConfig(),
        "cache_config": None,
        "load_checkpoint_config": None,
    },
    d.CheckpointingConfig: {"enabled": False, "checkpoint_path": None, "volume_size_gib": None},
    d.CacheConfig: {
        "enabled": False,
        "enable_legacy_hf_mount": False,
        "require_cache_affinity": True,
        "mount_base_path": "/root/.cache",
    },
    d.LoadCheckpointConfig: {
        "enabled": False,
        "checkpoints": [d.BasetenLatestCheckpoint()],
        "download_folder": "/tmp/loaded_checkpoints",
    },
    d.SecretReference: {"name": ...},
    d.Workspace: {"workspace_root": None, "external_dirs": [], "exclude_dirs": []},
    d.WeightsSource: {
        "source": ...,
        "mount_location": ...,
        "auth": None,
        "auth_secret_name": None,
        "allow_patterns": None,
        "ignore_patterns": None,
    },
    d.WeightsAuth: {
        "auth_method": ...,
        "auth_secret_name": None,
        "aws_oidc_role_arn": None,
        "aws_oidc_region": None,
        "gcp_oidc_service_account": None,
        "gcp_oidc_workload_id_provider": None,
        "aws_assume_role_arn": None,
        "aws_assume_role_region": None,
    },
}


@pytest.mark.parametrize("model", FIELDS, ids=lambda model: model.__name__)
def test_has_exactly_the_fields_and_defaults(model: type[BaseModel]) -> None:
    found = {
        name: ... if field.is_required() else field.get_default(call_default_factory=True)
        for name, field in model.model_fields.items()
    }
    assert found == FIELDS[model]


def test_the_interactive_session() -> None:
    session = d.InteractiveSession(trigger=d.InteractiveSessionTrigger.ON_FAILURE)
    assert (session.timeout_minutes, session.trigger.value) == (480, "on_failure")
    assert [each.value for each in d.InteractiveSessionTrigger] == ["on_demand", "on_startup", "on_failure"]
    assert [each.value for each in d.InteractiveSessionProvider] == ["vs_code", "cursor", "ssh"]
    assert [each.value for each in d.InteractiveSessionAuthProvider] == ["microsoft", "github"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: d.Compute(cpu_count="4"),
        lambda: d.Compute(memory=16),
        lambda: d.Compute(availability_model="spot"),
        lambda: d.Compute(gpus=1),
        lambda: d.Image(),
        lambda: d.Image(image="x"),
        lambda: d.InteractiveSession(trigger="on_failure"),
        lambda: d.Runtime(start_commands="python train.py"),
        lambda: d.Runtime(environment_variables={"A": 1}),
        lambda: d.Runtime(enable_cache=True, cache_config=d.CacheConfig(enabled=True)),
        lambda: d.CheckpointingConfig(enabled=1),
        lambda: d.TrainingProject(name="p", job=d.TrainingJob(image=IMAGE), team="t"),
        lambda: d.LoopsCheckpoint.from_checkpoint("r", "c", "elsewhere"),  # type: ignore[arg-type]
        lambda: d.DockerAuth(auth_method=d.DockerAuthType.AWS_IAM, registry="r"),
        lambda: d.DockerAuth(
            auth_method=d.DockerAuthType.AWS_IAM,
            registry="r",
            registry_secret_docker_auth=d.RegistrySecretDockerAuth(secret_ref=d.SecretReference(name="s")),
        ),
    ],
)
def test_what_does_not_fit_exactly_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValidationError):
        make()


@pytest.mark.parametrize("text", ["H200:8", "h200:8"])
def test_an_accelerator_may_be_written_as_a_text(text: str) -> None:
    compute = d.Compute(accelerator=text)  # type: ignore[arg-type]
    assert compute.accelerator == d.AcceleratorSpec(accelerator=d.Accelerator.H200, count=8)
    assert d.Compute(accelerator="T4").accelerator == d.AcceleratorSpec(accelerator="T4")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["H2000", "H200:", "H200:0", "H200:x", "H200:-1", ""])
def test_an_accelerator_that_is_none(text: str) -> None:
    with pytest.raises(ValidationError):
        d.Compute(accelerator=text)  # type: ignore[arg-type]


def test_whose_latest_checkpoint() -> None:
    latest = d.BasetenCheckpoint.from_latest_checkpoint
    assert latest("p") == latest(project_name="p") == d.BasetenLatestCheckpoint(project_name="p")
    assert latest(project_name="p", job_id="j").job_id == "j"
    with pytest.raises(ValueError, match="needs project_name or job_id"):
        latest()
    assert d.LoopsCheckpoint.from_checkpoint("r", "c").target == "trainer"


def test_all_accelerators() -> None:
    names = "T4 L4 A10G V100 A100 A100_40GB H100 H200 H100_40GB B200 L40S RTX_PRO_6000 B300 GB300 B10"
    assert [each.value for each in d.Accelerator] == names.split()


@pytest.mark.parametrize(
    "source",
    [
        "hf://Qwen/Qwen3-0.6B",
        "hf://Qwen/Qwen3-0.6B@main",
        "s3://bucket/prefix",
        "gs://bucket",
        "azure://account/container/prefix",
        "r2://account.bucket/path",
        "cw://bucket/prefix",
        "https://host/file@2",
    ],
)
def test_sources(source: str) -> None:
    assert d.WeightsSource(source=source, mount_location="/m").source == source


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("Qwen/Qwen3-0.6B", "hf://"),
        ("HF://Qwen/Qwen3-0.6B", "begins with none"),
        ("hf://", "names nothing"),
        ("hf:///x", "names nothing"),
        ("s3://bucket/x@main", "no revisions"),
        ("r2://a.bucket/x@main", "no revisions"),
        ("ftp://user:hunter2@host/x", "begins with none"),
    ],
)
def test_sources_that_are_none(source: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        d.WeightsSource(source=source, mount_location="/m")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"mount_location": "m"}, "relative"),
        ({"allow_patterns": "*.json"}, "expected a list"),
        ({"ignore_patterns": "*.json"}, "expected a list"),
        (
            {"auth": {"auth_method": "CUSTOM_SECRET", "auth_secret_name": "a"}, "auth_secret_name": "b"},
            "named twice",
        ),
        ({"auth": {"auth_method": "CUSTOM_SECRET"}}, "auth_secret_name is missing"),
        ({"auth": {"auth_method": "AWS_OIDC", "aws_oidc_role_arn": "a"}}, "aws_oidc_region is missing"),
        (
            {
                "auth": {
                    "auth_method": "GCP_OIDC",
                    "gcp_oidc_service_account": "a",
                    "gcp_oidc_workload_id_provider": "b",
                    "auth_secret_name": "c",
                }
            },
            "belongs to auth_method CUSTOM_SECRET",
        ),
    ],
)
def test_weights_that_do_not_fit(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        d.WeightsSource(**{"source": "hf://a/b", "mount_location": "/m", **fields})


def test_weights_are_lax() -> None:
    auth = {"auth_method": "custom_secret", "auth_secret_name": "token"}
    with pytest.warns(UserWarning, match="no field 'alow_patterns'.*did you mean 'allow_patterns'"):
        weights = d.WeightsSource(source="hf://a/b", mount_location="/m", auth=auth, alow_patterns=["*"])  # type: ignore[arg-type,call-arg]
    assert weights.secret_name == "token"
    assert weights.auth is not None
    assert weights.auth.auth_method is d.WeightsAuthMethod.CUSTOM_SECRET


def test_a_project_survives_json() -> None:
    project = d.TrainingProject(
        name="p",
        team_name="t",
        job=d.TrainingJob(
            image=d.Image(
                base_image="i",
                docker_auth=d.DockerAuth(
                    auth_method=d.DockerAuthType.REGISTRY_SECRET,
                    registry="r",
                    registry_secret_docker_auth=d.RegistrySecretDockerAuth(
                        secret_ref=d.SecretReference(name="s")
                    ),
                ),
            ),
            compute=d.Compute(
                accelerator=d.AcceleratorSpec(accelerator=d.Accelerator.H100, count=2),
                availability_model=d.AvailabilityModel.SPOT,
            ),
            runtime=d.Runtime(
                start_commands=["a"],
                environment_variables={"A": "b", "C": d.SecretReference(name="d")},
                cache_config=d.CacheConfig(enabled=True),
                load_checkpoint_config=d.LoadCheckpointConfig(
                    enabled=True,
                    checkpoints=[
                        d.BasetenCheckpoint.from_named_checkpoint("checkpoint-1", "job"),
                        d.BasetenCheckpoint.from_latest_checkpoint(project_name="other"),
                        d.LoopsCheckpoint.from_checkpoint("run", "c", "sampler"),
                    ],
                ),
            ),
            interactive_session=d.InteractiveSession(),
            workspace=d.Workspace(workspace_root="..", exclude_dirs=["x"]),
            weights=[d.WeightsSource(source="hf://a/b", mount_location="/m", auth_secret_name="s")],
        ),
    )
    assert d.TrainingProject.model_validate_json(project.model_dump_json()) == project
