"""What two servers of buckets give and take by themselves: python -m benchmarks.servers.probe UPSTREAM MIRROR."""

import http.client
import json
import sys
import time
from urllib.parse import urlsplit

_REQUEST_BYTES = 8 << 20
_REQUESTS = 32


def get_rate(url: str, path: str) -> float:
    """Return bytes per second of ranged GETs, one after the other, from the beginning of an object on."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    buffer, got, began_s = memoryview(bytearray(_REQUEST_BYTES)), 0, time.perf_counter()
    for number in range(_REQUESTS):
        start = number * _REQUEST_BYTES
        connection.request("GET", path, headers={"Range": f"bytes={start}-{start + _REQUEST_BYTES - 1}"})
        with connection.getresponse() as answer:
            if answer.status == 416:  # beyond the end
                answer.read()
                break
            while count := answer.readinto(buffer):
                got += count
    return got / (time.perf_counter() - began_s)


def put_rate(url: str, bucket: str) -> float:
    """Return bytes per second of PUTs, one after the other."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    body, began_s = bytes(_REQUEST_BYTES), time.perf_counter()
    for number in range(_REQUESTS):
        connection.request("PUT", f"/{bucket}/probe/{number}", body)
        with connection.getresponse() as answer:
            answer.read()
    return _REQUESTS * _REQUEST_BYTES / (time.perf_counter() - began_s)


if __name__ == "__main__":
    upstream, mirror = sys.argv[1:]
    rates = {
        "get_bytes_per_s": get_rate(upstream, "/weights/model/model.safetensors"),
        "put_bytes_per_s": put_rate(mirror, "copy"),
    }
    print(json.dumps(rates))
