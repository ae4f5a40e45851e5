"""The split `train` of the Hub's dataset $DATASET into the training cache, by load_dataset.

The token comes from HF_TOKEN, as config.py has the trainer set it.
"""

import os
from pathlib import Path

from datasets import load_dataset
from training_cache import once


def fetch(directory: Path) -> None:
    """Write the rows' texts into directory. What load_dataset itself keeps goes with the job's scratch."""
    rows = load_dataset(os.environ["DATASET"], split="train", cache_dir=os.environ["BT_SCRATCH_DIR"])
    rows.select_columns(["text"]).to_json(directory / "train.jsonl")


if __name__ == "__main__":
    once("dataset", fetch)
