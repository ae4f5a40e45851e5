"""The definitions of a config.py: every class and field of truss_train's, with its defaults."""

from trainer.definitions.accelerator import Accelerator, AcceleratorSpec
from trainer.definitions.checkpoints import (
    BasetenCheckpoint,
    BasetenLatestCheckpoint,
    BasetenNamedCheckpoint,
    Checkpoint,
    CheckpointingConfig,
    LoadCheckpointConfig,
    LoopsCheckpoint,
)
from trainer.definitions.compute import AvailabilityModel, Compute
from trainer.definitions.image import (
    AWSAssumeRoleDockerAuth,
    AWSIAMDockerAuth,
    AWSOIDCDockerAuth,
    DockerAuth,
    DockerAuthType,
    GCPOIDCDockerAuth,
    GCPServiceAccountJSONDockerAuth,
    Image,
    RegistrySecretDockerAuth,
)
from trainer.definitions.job import TrainingJob, TrainingProject, Workspace
from trainer.definitions.runtime import CacheConfig, Runtime
from trainer.definitions.secrets import SecretReference
from trainer.definitions.session import (
    InteractiveSession,
    InteractiveSessionAuthProvider,
    InteractiveSessionProvider,
    InteractiveSessionTrigger,
)
from trainer.definitions.weights import WeightsAuth, WeightsAuthMethod, WeightsSource

__all__ = [
    "AWSAssumeRoleDockerAuth",
    "AWSIAMDockerAuth",
    "AWSOIDCDockerAuth",
    "Accelerator",
    "AcceleratorSpec",
    "AvailabilityModel",
    "BasetenCheckpoint",
    "BasetenLatestCheckpoint",
    "BasetenNamedCheckpoint",
    "CacheConfig",
    "Checkpoint",
    "CheckpointingConfig",
    "Compute",
    "DockerAuth",
    "DockerAuthType",
    "GCPOIDCDockerAuth",
    "GCPServiceAccountJSONDockerAuth",
    "Image",
    "InteractiveSession",
    "InteractiveSessionAuthProvider",
    "InteractiveSessionProvider",
    "InteractiveSessionTrigger",
    "LoadCheckpointConfig",
    "LoopsCheckpoint",
    "RegistrySecretDockerAuth",
    "Runtime",
    "SecretReference",
    "TrainingJob",
    "TrainingProject",
    "WeightsAuth",
    "WeightsAuthMethod",
    "WeightsSource",
    "Workspace",
]
