"""mirror, small: that it runs, what it counts, what it leaves, what it says. Never how fast."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from benchmarks.mirror import Raw, mirror_table, result
from benchmarks.processes import BenchmarkError
from benchmarks.servers.buckets import BucketServer
from tests.unit.benchmarks.conftest import benchmark

PART_BYTES = 5 << 20


@pytest.mark.timeout(300)
def test_mirror_small_measures_all_that_is_promised_and_leaves_only_the_model(tmp_path: Path):
    place, output = tmp_path / "place", tmp_path / "output"
    # What the user's environment says of S3 and of rclone is not the benchmark's.
    strange = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "RCLONE_DRY_RUN": "true"}
    found = benchmark(
        "mirror", "--small", "--pairs", "1", "--directory", place, "--output", output, **strange
    )
    for name in ("bytes", "ingest_bytes_per_s", "rerun_s", "copy_bytes_per_s", "peak_rss_bytes"):
        assert found[name] > 0
    assert found["ratio"]["ingest_over_copy"] > 0
    assert found["ingest_upstream_bytes"] == found["bytes"]
    assert found["rerun_bytes"] == 0
    assert found["rerun_mirror_bytes"] < 20_000
    # Less than any process with Python in it takes would not be a measurement.
    assert 10e6 < found["peak_rss_bytes"] < 4e9
    assert set(found["machine"]["servers"]) == {"get_bytes_per_s", "put_bytes_per_s"}
    assert "| ingest over copy" in (output / "mirror.md").read_text()
    assert sorted(path.name for path in (place / "small").iterdir()) == ["benchmark.lock", "hub"]


def test_without_rclone_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from benchmarks.mirror import mirror

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchmarkError, match="scripts/setup"):
        mirror(tmp_path / "place", small=True, pairs=1, say=lambda _: None)
    assert not (tmp_path / "place").exists()


def measured() -> dict[str, Any]:
    raw = Raw(
        ingest_s=[2.0, 4.0, 3.0],
        ingest_cpu_s=[[1.0, 0.1, 0.2]] * 3,
        ingest_rss_bytes=[90, 700_000_000, 80],
        ingest_upstream_bytes=[900, 901, 900],
        rerun_s=[0.5, 0.7, 0.6],
        rerun_upstream_bytes=[0, 1, 0],
        rerun_mirror_bytes=[5, 6, 5],
        copy_s={"defaults": [9.0, 9.0, 9.0], "16 at once": [1.0, 2.0, 1.2]},
        copy_cpu_s={"defaults": [[9.0, 9.0, 9.0]] * 3, "16 at once": [[2.0, 0.3, 0.4]] * 3},
        copy_rss_bytes=[70, 60],
    )
    machine = {"cpu": "one", "cpus": 2, "filesystem": "tmpfs", "store": "/x", "load_average": 0.0}
    return result(raw, 900, machine | {"rclone": "rclone v1", "commit": None, "date": "today"})


def test_figures_are_medians_the_faster_copy_counts_and_reruns_add_up():
    found = measured()
    assert (found["ingest_bytes_per_s"], found["copy_bytes_per_s"]) == (300.0, 750.0)
    assert (found["copy"], found["rerun_s"], found["rerun_bytes"]) == ("16 at once", 0.6, 1)
    assert found["ratio"] == {"ingest_over_copy": 0.5}
    assert (found["peak_rss_bytes"], found["ingest_upstream_bytes"]) == (700_000_000, 901)
    assert found["cpu_s"]["copy"] == {"client": 2.0, "upstream": 0.3, "mirror": 0.4}


def test_the_table_says_what_was_not_reached():
    goals = [line for line in mirror_table(measured()).splitlines() if line.rstrip(" |").endswith(" no")]
    assert len(goals) == 3


# ---- the two servers -----------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BucketServer]:
    with BucketServer(tmp_path) as server:
        yield server


@pytest.fixture
def client(server: BucketServer) -> Any:
    client = boto3.client(
        "s3",
        endpoint_url=server.url,
        aws_access_key_id="AK",
        aws_secret_access_key="SK",
        region_name="us-east-1",
        # Otherwise bodies come in chunks with checksums behind them.
        config=Config(request_checksum_calculation="when_required", retries={"total_max_attempts": 1}),
    )
    client.create_bucket(Bucket="some")
    return client


def status_of(error: pytest.ExceptionInfo[ClientError]) -> int:
    return int(error.value.response["ResponseMetadata"]["HTTPStatusCode"])


def test_objects_are_what_was_put_and_conditions_hold(server: BucketServer, client: Any):
    put = client.put_object(Bucket="some", Key="a/b", Body=b"0123456789", ContentType="x/y", IfNoneMatch="*")
    got = client.get_object(Bucket="some", Key="a/b", Range="bytes=2-4", IfMatch=put["ETag"])
    assert (got["Body"].read(), got["ContentType"], got["ETag"]) == (b"234", "x/y", put["ETag"])
    for condition in ({"IfNoneMatch": "*"}, {"IfMatch": '"other"'}):
        with pytest.raises(ClientError) as refused:
            client.put_object(Bucket="some", Key="a/b", Body=b"new", **condition)
        assert status_of(refused) == 412
    client.put_object(Bucket="some", Key="a/b", Body=b"new", IfMatch=put["ETag"])
    with pytest.raises(ClientError) as changed:
        client.get_object(Bucket="some", Key="a/b", IfMatch=put["ETag"])
    assert status_of(changed) == 412
    for key in ("a", "a/c", "../some/a/b"):
        with pytest.raises(ClientError):
            client.head_object(Bucket="some", Key=key)
    assert server.stats["bytes_sent"] == 3
    assert server.stats["bytes_received"] == 10 + 3 + 3 + 3


def test_listings_know_prefixes_and_delimiters(client: Any):
    for key in ("a/1", "a/b/2", "ab/3", "c d+e"):
        client.put_object(Bucket="some", Key=key, Body=key.encode())
    all_of_it = client.list_objects_v2(Bucket="some")
    assert {each["Key"]: each["Size"] for each in all_of_it["Contents"]} == {
        "a/1": 3,
        "a/b/2": 5,
        "ab/3": 4,
        "c d+e": 5,
    }
    below = client.list_objects_v2(Bucket="some", Prefix="a/", Delimiter="/", EncodingType="url")
    assert [each["Key"] for each in below["Contents"]] == ["a/1"]
    assert [each["Prefix"] for each in below["CommonPrefixes"]] == ["a/b/"]
    client.delete_object(Bucket="some", Key="a/1")
    assert "Contents" not in client.list_objects_v2(Bucket="some", Prefix="a/1")
    with pytest.raises(ClientError) as missing:
        client.list_objects_v2(Bucket="none")
    assert status_of(missing) == 404


def test_parts_of_an_upload_come_in_any_order_after_the_first(client: Any):
    parts = [bytes([number]) * PART_BYTES for number in (1, 2)] + [b"the end"]
    upload = client.create_multipart_upload(Bucket="some", Key="big")["UploadId"]
    for number in (1, 3, 2):
        client.upload_part(
            Bucket="some", Key="big", UploadId=upload, PartNumber=number, Body=parts[number - 1]
        )
    client.complete_multipart_upload(
        Bucket="some",
        Key="big",
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": number, "ETag": "any"} for number in (1, 2, 3)]},
    )
    assert client.get_object(Bucket="some", Key="big")["Body"].read() == b"".join(parts)


def test_a_server_s_own_directory_is_gone_when_its_input_ends(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks.servers.buckets", str(tmp_path), "--fresh", "--until-eof"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        assert len(list(tmp_path.iterdir())) == 1
        process.stdin.close()
        assert process.wait(30) == 0
    assert list(tmp_path.iterdir()) == []
