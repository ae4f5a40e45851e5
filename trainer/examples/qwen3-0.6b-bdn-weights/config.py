"""Qwen3-0.6B fine-tuned: weights from the Hub, and data from your bucket, whole on disk before it starts.

    trainer push config.py --tail                                              on an H100
    trainer push config.py --tail --accelerator L4:1                           on another GPU
    trainer push config.py --tail --accelerator none --entrypoint "python train.py --small"

DATASET=s3://bucket/prefix   *.jsonl files with a "text" per line, read with the secret aws_credentials
                             (JSON: aws_access_key_id, aws_secret_access_key, aws_region);
                             without it, sample.jsonl beside this file
RESUME_FROM=<job id>         go on from that job's newest checkpoint
"""

import os

from truss.base.truss_config import Accelerator, AcceleratorSpec, WeightsAuth, WeightsSource
from truss_train import definitions

MODEL = "/app/models/Qwen/Qwen3-0.6B"
DATA = "/app/data/train"

dataset = os.environ.get("DATASET")
resume_from = os.environ.get("RESUME_FROM")

weights = [
    WeightsSource(
        source="hf://Qwen/Qwen3-0.6B@main",
        mount_location=MODEL,
        allow_patterns=["*.safetensors", "*.json", "*.txt"],
    )
]
if dataset:
    weights.append(
        WeightsSource(
            source=dataset,
            mount_location=DATA,
            auth=WeightsAuth(auth_method="CUSTOM_SECRET", auth_secret_name="aws_credentials"),
        )
    )

resume = None
if resume_from:
    newest = definitions.BasetenCheckpoint.from_latest_checkpoint(job_id=resume_from)
    resume = definitions.LoadCheckpointConfig(enabled=True, checkpoints=[newest])

project = definitions.TrainingProject(
    name="qwen3-0.6b",
    job=definitions.TrainingJob(
        image=definitions.Image(base_image="pytorch/pytorch:2.7.0-cuda12.8-cudnn9-runtime"),
        compute=definitions.Compute(
            cpu_count=4,
            memory="32Gi",
            accelerator=AcceleratorSpec(accelerator=Accelerator.H100, count=1),
        ),
        runtime=definitions.Runtime(
            # Several GPUs: "torchrun --standalone --nproc-per-node=$BT_NUM_GPUS train.py"
            start_commands=["python train.py"],
            environment_variables={"MODEL": MODEL, "DATA": DATA if dataset else "sample.jsonl"},
            checkpointing_config=definitions.CheckpointingConfig(enabled=True),
            load_checkpoint_config=resume,
        ),
        weights=weights,
    ),
)
