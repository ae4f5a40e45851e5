"""Data from S3, fetched in the job with boto3, kept in the training cache.

    DATA_URL=s3://bucket/prefix trainer push config.py --tail

Needs boto3 where the job runs, and the secrets aws_access_key_id and aws_secret_access_key.
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
    name="data-from-s3",
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
                "DATA_URL": os.environ.get("DATA_URL", "s3://my-bucket/training-data"),
                "AWS_ACCESS_KEY_ID": SecretReference(name="aws_access_key_id"),
                "AWS_SECRET_ACCESS_KEY": SecretReference(name="aws_secret_access_key"),
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
