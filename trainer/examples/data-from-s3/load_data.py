"""Every object below $DATA_URL (s3://bucket/prefix) into the training cache, by boto3.

The keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, as config.py has the trainer set them.
"""

import os
from pathlib import Path
from urllib.parse import urlsplit

import boto3
from training_cache import once


def fetch(directory: Path) -> None:
    """Download into directory, as the keys say."""
    url = urlsplit(os.environ["DATA_URL"])
    bucket, prefix = url.netloc, url.path.strip("/") + "/"
    client = boto3.client("s3")
    count = 0
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for found in page.get("Contents", []):
            name = found["Key"].removeprefix(prefix)
            if not name or name.endswith("/"):
                continue
            target = (directory / name).resolve()
            if not target.is_relative_to(directory.resolve()):
                raise SystemExit(f"{found['Key']!r} would lie outside of the dataset's directory")
            target.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, found["Key"], str(target))
            count += 1
    if count == 0:
        raise SystemExit(
            f"{os.environ['DATA_URL']}: there is nothing below this prefix; is it spelled right?"
        )


if __name__ == "__main__":
    once("dataset", fetch)
