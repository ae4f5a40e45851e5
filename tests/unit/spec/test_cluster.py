"""`cluster` in the config: read strictly, with errors that name the place and show no password."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdnfs.core.errors import SpecError
from bdnfs.spec.cluster import (
    ClusterConfig,
    RedisConfig,
    TlsConfig,
    is_address,
    parse_cluster,
)
from bdnfs.spec.fields import Position
from bdnfs.spec.hostlist import HOSTS_MAX, expand_hosts
from bdnfs.spec.secret import Secret

AT = Position("node.yaml", "cluster")
TLS = {"cert": "/c", "key": "/k", "ca": "~/a"}


def parsed(**found: Any) -> ClusterConfig:
    return parse_cluster(found, AT, "/home/u")


def test_everything_but_who_the_members_are_has_a_default() -> None:
    assert parsed(members=["a", "b:80"]) == ClusterConfig(members=("a:7891", "b:80"))
    assert parsed(redis="redis://r") == ClusterConfig(redis=RedisConfig("r"))


def test_the_whole_of_it_is_read() -> None:
    assert parsed(
        name="train-1",
        redis={"url": "rediss://me:p%40ss%2F@[2001:db8::1]:6380/3", "ca": "~/redis.pem"},
        listen="0.0.0.0:9000",
        advertise="Node1.example",
        tls=TLS,
        share="500GiB",
        serve_rate="10Gbit/s",
        while_job="pause",
    ) == ClusterConfig(
        name="train-1",
        host="0.0.0.0",
        port=9000,
        redis=RedisConfig("2001:db8::1", 6380, True, 3, "me", Secret("p@ss/"), "/home/u/redis.pem"),
        advertise="node1.example:9000",
        tls=TlsConfig("/c", "/k", "/home/u/a"),
        share_bytes=500 << 30,
        serve_rate=1_250_000_000,
        while_job="pause",
    )
    assert parsed(members="n", listen="[::]:1", token_file="/t").token_file == "/t"
    assert parsed(members="n", serve_rate="500MB/s").serve_rate == 500_000_000
    assert parsed(members="n", serve_rate=1000).serve_rate == 1000
    assert parsed(members="n", share=0).share_bytes == 0


def test_members_are_hosts_addresses_or_slurms_list() -> None:
    assert parsed(members="node[01-03,07]:80,login").members == (
        "node01:80", "node02:80", "node03:80", "node07:80", "login:7891",
    )  # fmt: skip
    assert parsed(members=["10.0.0.1", "[2001:db8::1]:80", "[2001:db8::2]", "2001:db8::3", "N4"]).members == (
        "10.0.0.1:7891", "[2001:db8::1]:80", "[2001:db8::2]:7891", "[2001:db8::3]:7891", "n4:7891",
    )  # fmt: skip
    assert parsed(members="n[1-2]", listen="127.0.0.1:99").members == ("n1:99", "n2:99")


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "node1:1", "[2001:db8::1]:1"])
def test_a_listener_that_others_reach_needs_to_know_who_they_are(listen: str) -> None:
    with pytest.raises(
        SpecError, match=r"cluster\.listen: .* nothing says who may; name a token_file or tls"
    ):
        parsed(members="n", listen=listen)
    assert parsed(members="n", listen=listen, token_file="/t").token_file == "/t"
    assert parsed(members="n", listen=listen, tls=TLS).tls is not None


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"])
def test_loopback_needs_nothing(listen: str) -> None:
    parsed(members="n", listen=listen)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, "cluster: needs one of members"),
        ({"members": ["a"], "redis": "redis://r"}, "name exactly one"),
        ({"members": [], "name": "x"}, r"cluster\.members: names no member"),
        ({"members": "a", "shares": 1}, r"cluster\.shares: unknown key; did you mean 'share'"),
        ({"members": ["a", "a:7891"]}, r"names 'a:7891' twice"),
        ({"members": ["a", 7]}, r"cluster\.members\[1\]: expected text"),
        ({"members": "a b"}, "is no address"),
        ({"members": "a:0"}, "is no address"),
        ({"members": "a:99999"}, "is no address"),
        ({"members": "-a"}, "is no address"),
        ({"members": "a/b"}, "is no address"),
        ({"members": "[::1"}, "is no address"),
        ({"members": "0.0.0.0:1"}, "stands for any address"),
        ({"members": "n[1-9999]"}, "more than 4096 hosts"),
        ({"members": ["n[1-4000]", "m[1-4000]"]}, "names 8000 members"),
        ({"members": "a", "name": "a b"}, r"cluster\.name: .* can't name a cluster"),
        ({"members": "a", "name": "{x}"}, "can't name a cluster"),
        ({"members": "a", "listen": "nonsense"}, r"cluster\.listen: expected HOST:PORT"),
        ({"members": "a", "advertise": "[::]:1"}, r"cluster\.advertise: .* any address"),
        ({"members": "a", "advertise": "http://a:1"}, r"cluster\.advertise: .* no address"),
        ({"members": "a", "token_file": "t"}, r"cluster\.token_file: 't' is relative"),
        ({"members": "a", "token_file": "/t", "tls": TLS}, "names both token_file and tls"),
        ({"members": "a", "tls": {"cert": "/c", "key": "/k"}}, r"cluster\.tls: has no ca"),
        ({"members": "a", "tls": {**TLS, "ca": 1}}, r"cluster\.tls\.ca: expected text"),
        ({"members": "a", "tls": {**TLS, "keys": "/x"}}, r"cluster\.tls\.keys: unknown key"),
        ({"members": "a", "share": "many"}, r"cluster\.share: "),
        ({"members": "a", "share": True}, r"cluster\.share: expected a size"),
        ({"members": "a", "serve_rate": "0"}, r"cluster\.serve_rate: .* lets nothing through"),
        ({"members": "a", "serve_rate": "1Gbit/h"}, r"cluster\.serve_rate: "),
        ({"members": "a", "serve_rate": "1.2.3Gbit/s"}, r"cluster\.serve_rate: "),
        ({"members": "a", "while_job": "stop"}, r"cluster\.while_job: expected throttle or pause, found 'stop'"),
        ({"members": "a", "while_job": ["pause"]}, "found a list"),
        ({"redis": {"ca": "/x"}}, r"cluster\.redis: has no url"),
        ({"redis": {"url": "redis://r", "ca": "/x"}}, "without TLS there is none to check"),
        ({"redis": 7}, r"cluster\.redis: expected a mapping with url, ca; found the number 7"),
        ({"redis": {"url": 7}}, r"cluster\.redis\.url: expected a URL"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused_by_its_place(found: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said) as caught:
        parsed(**found)
    assert str(caught.value).startswith("node.yaml: cluster")


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@r",
        "redis://me:hunter2@",
        "redis://me:hunter2@r:port",
        "redis://me:hunter2@r:99999",
        "redis://me:hunter2@r:0",
        "redis://me:hunter2@r/zero",
        "redis://me:hunter2@r/0?db=1",
        "redis://me:hunter2@r/0#x",
        "redis://me:hunter2@r r",
        "redis://me:hunter2@[::1",
        "redis://me:hunter2/@r",
        "hunter2",
        "redis://hunter2@r",
    ],
)
def test_no_part_of_a_wrong_url_is_shown(url: str) -> None:
    for redis in (url, {"url": url}):
        with pytest.raises(SpecError, match=r"cluster\.redis") as caught:
            parsed(redis=redis)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_no_repr_shows_a_password() -> None:
    config = parsed(redis="rediss://me:hunter2@r:1/2")
    assert config.redis is not None
    assert config.redis.password == Secret("hunter2")
    assert "hunter2" not in repr(config) + str(config) + str(config.redis)
    assert str(config.redis) == "rediss://r:1/2"


@pytest.mark.parametrize(
    ("expression", "hosts"),
    [
        ("a", "a"),
        ("a,b-1,c.d", "a b-1 c.d"),
        ("node[01-04,07]", "node01 node02 node03 node04 node07"),
        ("n[8-11]", "n8 n9 n10 n11"),
        ("n[008-010]x", "n008x n009x n010x"),
        ("n[99-101]", "n99 n100 n101"),
        ("r[1-2]n[1,3],z", "r1n1 r1n3 r2n1 r2n3 z"),
        ("a, b", "a b"),
    ],
)
def test_slurms_lists(expression: str, hosts: str) -> None:
    assert list(expand_hosts(expression, "here")) == hosts.split()


@pytest.mark.parametrize(
    "expression",
    ["", ",", "a,,b", "n[", "n]", "n[]", "n[1-]", "n[-1]", "n[2-1]", "n[a-b]", "n[1-2-3]", "n[1,]", "n[[1]]", "n[1]]",
     "n[1 - 2]", "n[\u0661-\u0662]", "n[1-1000000000000]"],
)  # fmt: skip
def test_what_is_no_list_of_slurms(expression: str) -> None:
    with pytest.raises(SpecError, match=r"^here: "):
        expand_hosts(expression, "here")


@pytest.mark.parametrize(
    "expression", ["n[0-999999999]", "n[1-65][1-65]", "n" * 70_000, ",".join(["n[1-100]"] * 99)]
)
def test_a_list_is_bounded_before_it_is_made(expression: str) -> None:
    with pytest.raises(SpecError, match=rf"more than {HOSTS_MAX} hosts|longer than any list of {HOSTS_MAX}"):
        expand_hosts(expression, "here")


@given(st.text(alphabet="n01,-[]:. a", max_size=30))
def test_whatever_is_given_is_read_or_refused(given_text: str) -> None:
    """Nothing else is raised, and what is read can be reached."""
    try:
        members = parsed(members=given_text).members
    except SpecError:
        return
    assert members
    assert all(is_address(member) for member in members)
