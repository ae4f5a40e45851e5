"""Data from Google Cloud Storage, fetched in the job, kept in the training cache.

    DATA_URL=gs://bucket/prefix trainer push config.py --tail

Needs google-cloud-storage where the job runs, and the secret gcp_service_account: the JSON of a key.
On a CPU: TRAIN_OPTIONS=--small, and --accelerator none.

Weights are delivered before the job starts; load_data.py fetches the data in the job, into the training cache,
where the project's next job finds it.
"""

import os

from truss.base.truss_config import Accelerator, AcceleratorSpec, WeightsSource
from truss_train import definitions
from truss_train.definitions import SecretReference

MODEL = "/app/models/Qwen/Qwen3-0.6B"

project = definitions.TrainingProject(
    name="data-from-gcs",
    job=definitions.TrainingJob(
        image=definitions.Image(base_image="pytorch/pytorch:2.7.0-cuda12.8-cudnn9-runtime"),
        compute=definitions.Compute(
            cpu_count=4,
            memory="32Gi",
            accelerator=AcceleratorSpec(accelerator=Accelerator.H100, count=1),
        ),
        runtime=definitions.Runtime(
            start_commands=[
                "python load_data.py",
                'python train.py ${TRAIN_OPTIONS:-} --data "$BT_PROJECT_CACHE_DIR/dataset"',
            ],
            environment_variables={
                "MODEL": MODEL,
                "TRAIN_OPTIONS": os.environ.get("TRAIN_OPTIONS", ""),
                "DATA_URL": os.environ.get("DATA_URL", "gs://my-bucket/training-data"),
                "GCP_SERVICE_ACCOUNT_JSON": SecretReference(name="gcp_service_account"),
            },
            cache_config=definitions.CacheConfig(enabled=True),
            checkpointing_config=definitions.CheckpointingConfig(enabled=True),
        ),
        weights=[
            WeightsSource(
                source="hf://Qwen/Qwen3-0.6B@main",
                mount_location=MODEL,
                allow_patterns=["*.safetensors", "*.json", "*.txt"],
            )
        ],
    ),
)
