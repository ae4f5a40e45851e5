"""Data from the Hub, fetched in the job with load_dataset, kept in the training cache.

    DATASET=stanfordnlp/imdb trainer push config.py --tail

Needs `datasets` where the job runs, and the secret hf_access_token. The split `train` of a dataset with a
column "text". On a CPU: TRAIN_OPTIONS=--small, and --accelerator none.

Weights are delivered before the job starts; load_data.py fetches the data in the job, into the training cache,
where the project's next job finds it.
"""

import os

from truss.base.truss_config import Accelerator, AcceleratorSpec, WeightsSource
from truss_train import definitions
from truss_train.definitions import SecretReference

MODEL = "/app/models/Qwen/Qwen3-0.6B"

project = definitions.TrainingProject(
    name="data-from-huggingface",
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
                "DATASET": os.environ.get("DATASET", "stanfordnlp/imdb"),
                "HF_TOKEN": SecretReference(name="hf_access_token"),
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
