"""What a client sees of each fault."""

import time

import pytest
import urllib3
from urllib3.exceptions import HTTPError, IncompleteRead, ProtocolError, ReadTimeoutError

from benchmarks.servers.hub import HubServer
from tests.unit.servers.conftest import FILES, REPO, WEIGHTS, Client


@pytest.fixture
def url(hub: HubServer, client: Client) -> str:
    """A link to the weights, given out before any fault."""
    location = client.get(f"{hub.url}/{REPO}/resolve/main/model.safetensors").headers["Location"]
    hub.reset()
    return location


def test_a_status_with_its_headers_and_then_the_answer(hub: HubServer, client: Client, url: str):
    hub.faults.add(status=429, headers={"Retry-After": "7"}, match="model.safetensors")
    refused = client.get(url)
    assert (refused.status, refused.headers["Retry-After"]) == (429, "7")
    assert client.get(url).data == WEIGHTS
    assert [request.status for request in hub.requests] == [429, 200]


def test_wrong_bytes_are_one(hub: HubServer, client: Client, url: str):
    hub.faults.add(wrong_bytes=True, times=2)
    data = client.get(url).data
    wrong = [at for at in range(len(data)) if data[at] != WEIGHTS[at]]
    assert (len(data), wrong) == (300_000, [150_000])
    data = client.get(url, Range="bytes=100-104").data
    assert data[:2] + data[3:] == WEIGHTS[100:102] + WEIGHTS[103:105]
    assert data[2] != WEIGHTS[102]
    assert hub.bytes_sent == 300_005


def test_wrong_bytes_in_a_listing(hub: HubServer, client: Client):
    hub.faults.add(wrong_bytes=True)
    place = f"{hub.url}/api/models/{REPO}"
    assert client.get(place).data != client.get(place).data


def test_a_truncated_body_ends_early(hub: HubServer, client: Client, url: str):
    hub.faults.add(truncate_at=1000)
    with pytest.raises((IncompleteRead, ProtocolError), match="1000 bytes read"):
        client.get(url)
    assert hub.bytes_sent == 1000


def test_a_reset_is_no_answer(hub: HubServer, client: Client, url: str):
    hub.faults.add(reset=True)
    with pytest.raises(ProtocolError, match="reset by peer"):
        client.get(url)
    assert [request.status for request in hub.requests] == [0]


def test_a_stall_sends_half_and_waits_for_the_client(hub: HubServer, url: str):
    hub.faults.add(stall=True)
    with urllib3.PoolManager(retries=False, timeout=0.2) as pool, pytest.raises(HTTPError) as caught:
        pool.request("GET", url)
    assert isinstance(caught.value, ReadTimeoutError)
    assert hub.bytes_sent == 150_000


def test_a_stall_does_not_hold_up_the_servers_end(hub: HubServer, url: str):
    hub.faults.add(stall=True)
    with urllib3.PoolManager(retries=False, timeout=20) as pool:
        answer = pool.request("GET", url, preload_content=False)
        assert answer.read(150_000) == WEIGHTS[:150_000]
        started = time.monotonic()
        hub.stop()
        assert time.monotonic() - started < 5
        with pytest.raises(HTTPError):
            answer.read()


def test_a_slow_body_takes_its_time(hub: HubServer, client: Client, url: str):
    hub.faults.add(slow_bytes_per_s=1_000_000)
    started = time.monotonic()
    assert client.get(url).data == WEIGHTS
    assert time.monotonic() - started >= 0.3


def test_a_delay_comes_before_the_answer(hub: HubServer, client: Client, url: str):
    hub.faults.add(delay_s=0.2)
    started = time.monotonic()
    assert client.get(url).data == WEIGHTS
    assert time.monotonic() - started >= 0.2


def test_a_redirect_leads_away(hub: HubServer, client: Client, url: str):
    hub.faults.add(redirect_to="http://elsewhere.example/")
    answer = client.get(url)
    assert (answer.status, answer.headers["Location"]) == (302, "http://elsewhere.example/")


def test_a_range_can_be_ignored_and_a_header_changed(hub: HubServer, client: Client):
    place = f"{hub.url}/{REPO}/resolve/main/config.json"
    hub.faults.add(ignore_range=True, headers={"etag": '"changed"'})
    answer = client.get(place, Range="bytes=0-1")
    assert (answer.status, answer.data) == (200, FILES["config.json"])
    assert answer.headers.getlist("ETag") == ['"changed"']
    assert client.get(place, Range="bytes=0-1").data == FILES["config.json"][:2]
