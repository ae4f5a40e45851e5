"""Every object below $DATA_URL (gs://bucket/prefix) into the training cache.

The service account's key comes from GCP_SERVICE_ACCOUNT_JSON, as config.py has the trainer set it.
"""

import json
import os
from pathlib import Path
from urllib.parse import urlsplit

from google.cloud import storage
from google.oauth2 import service_account
from training_cache import once


def fetch(directory: Path) -> None:
    """Download into directory, as the objects' names say."""
    url = urlsplit(os.environ["DATA_URL"])
    bucket, prefix = url.netloc, url.path.strip("/") + "/"
    key = json.loads(os.environ["GCP_SERVICE_ACCOUNT_JSON"])
    credentials = service_account.Credentials.from_service_account_info(
        key, scopes=["https://www.googleapis.com/auth/devstorage.read_only"]
    )
    client = storage.Client(project=key["project_id"], credentials=credentials)
    count = 0
    for blob in client.list_blobs(bucket, prefix=prefix):
        name = blob.name.removeprefix(prefix)
        if not name or name.endswith("/"):
            continue
        target = (directory / name).resolve()
        if not target.is_relative_to(directory.resolve()):
            raise SystemExit(f"{blob.name!r} would lie outside of the dataset's directory")
        target.parent.mkdir(parents=True, exist_ok=True)
        blob.download_to_filename(str(target))
        count += 1
    if count == 0:
        raise SystemExit(
            f"{os.environ['DATA_URL']}: there is nothing below this prefix; is it spelled right?"
        )


if __name__ == "__main__":
    once("dataset", fetch)
