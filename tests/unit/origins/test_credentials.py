"""When a credential is read or exchanged anew, and when the old one serves on."""

import threading
import time
from pathlib import Path

import pytest

from bdnfs.core.errors import CredentialsError, UnavailableError
from bdnfs.origins import credentials
from bdnfs.origins.credentials import AccessToken, AwsKeys, Exchanged, Fixed, Reread, Temporary


class Exchange:
    """An exchange that counts; each value is good for life_s. problem: raised instead."""

    def __init__(self, life_s: float = 3600.0) -> None:
        self.life_s = life_s
        self.count = 0
        self.problem: Exception | None = None

    def __call__(self) -> Temporary[str]:
        self.count += 1
        if self.problem:
            raise self.problem
        return Temporary(f"v{self.count}", time.time() + self.life_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds by which the clock is ahead; a test turns it."""
    ahead, real = [0.0], time.time
    monkeypatch.setattr(time, "time", lambda: real() + ahead[0])
    return ahead


def test_nothing_is_exchanged_before_it_is_asked_for_and_then_once(clock: list[float]) -> None:
    exchange = Exchange()
    found = Exchanged("x", exchange, 1.0)
    assert exchange.count == 0
    assert [found.current() for _ in range(3)] == ["v1"] * 3
    clock[0] = 3600 - credentials.REFRESH_S - 1
    assert found.current() == "v1"
    clock[0] += 2
    assert [found.current() for _ in range(3)] == ["v2"] * 3


def test_short_lives_are_refreshed_in_their_last_quarter(clock: list[float]) -> None:
    found = Exchanged("x", Exchange(8.0), 1.0)
    assert found.current() == "v1"
    clock[0] = 5.5
    assert found.current() == "v1"
    clock[0] = 6.5
    assert found.current() == "v2"


def test_while_the_exchange_is_away_the_old_value_serves_on_until_its_end(clock: list[float]) -> None:
    exchange = Exchange()
    found = Exchanged("x", exchange, 1.0)
    assert found.current() == "v1"
    exchange.problem = UnavailableError("away")
    clock[0] = 3400
    assert [found.current() for _ in range(5)] == ["v1"] * 5
    assert exchange.count == 2  # not one failure for each request
    clock[0] += 11
    found.current()
    assert exchange.count == 3
    clock[0] = 3601
    with pytest.raises(UnavailableError, match="away"):
        found.current()
    exchange.problem = None
    assert found.current() == "v5"


def test_a_refusal_brings_a_new_one_once_for_all_who_used_the_old(clock: list[float]) -> None:
    exchange = Exchange()
    found = Exchanged("x", exchange, 1.0)
    used = found.current()
    assert not found.refused(used)  # it came only just now: the same again would be refused again
    clock[0] = 60
    assert found.refused(used)
    assert found.current() == "v2"
    assert found.refused(used)
    assert found.current() == "v2"
    assert not found.refused("v2")
    assert exchange.count == 2


def test_threads_wait_for_one_exchange() -> None:
    begun, go_on = threading.Event(), threading.Event()
    exchange = Exchange()

    def slow() -> Temporary[str]:
        begun.set()
        assert go_on.wait(30)
        return exchange()

    found = Exchanged("x", slow, 30.0)
    seen: list[str] = []
    threads = [threading.Thread(target=lambda: seen.append(found.current())) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert begun.wait(30)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert (seen, exchange.count) == (["v1"] * 8, 1)


def test_while_one_thread_refreshes_the_others_use_what_is_still_good(clock: list[float]) -> None:
    begun, go_on = threading.Event(), threading.Event()
    exchange = Exchange()

    def slow_later() -> Temporary[str]:
        if exchange.count:
            begun.set()
            assert go_on.wait(30)
        return exchange()

    found = Exchanged("x", slow_later, 30.0)
    assert found.current() == "v1"
    clock[0] = 3400
    refresher = threading.Thread(target=found.current)
    refresher.start()
    assert begun.wait(30)
    assert found.current() == "v1"
    go_on.set()
    refresher.join(30)
    assert found.current() == "v2"


def test_nobody_waits_for_ever_for_another_ones_exchange() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def stuck() -> Temporary[str]:
        begun.set()
        go_on.wait(30)
        return Temporary("v", time.time() + 60)

    found = Exchanged("AWS_OIDC (role r)", stuck, 0.05)
    thread = threading.Thread(target=found.current)
    thread.start()
    assert begun.wait(30)
    with pytest.raises(UnavailableError, match=r"AWS_OIDC \(role r\): no answer"):
        found.current()
    go_on.set()
    thread.join(30)


def test_a_file_is_read_each_time_and_its_last_good_value_serves_on(tmp_path: Path) -> None:
    path = tmp_path / "token"

    def read() -> str:
        if not path.exists() or not (text := path.read_text()):
            raise CredentialsError("no token")
        return text

    with pytest.raises(CredentialsError):
        Reread("t", read)
    path.write_text("one")
    found = Reread("t", read)
    path.write_text("two")
    assert found.current() == "two"
    assert found.refused("one")
    assert not found.refused("two")
    path.write_text("")
    assert found.current() == "two"
    with pytest.raises(CredentialsError):  # now that upstream refuses it, the file's problem is the news
        found.refused("two")


def test_what_is_fixed_stays() -> None:
    found = Fixed("x", "HF_TOKEN")
    assert (found.current(), found.refused("x"), found.name) == ("x", False, "HF_TOKEN")


def test_nothing_of_it_is_shown() -> None:
    keys = AwsKeys("AK", "hunter2", "hunter3")
    token = AccessToken("hunter2", 1.0)
    found = Exchanged("x", lambda: Temporary(keys, time.time() + 60), 1.0)
    found.current()
    for shown in (keys, token, Temporary(keys, 1.0), found, Fixed(keys, "k"), [keys], (token,)):
        assert "hunter" not in f"{shown!r} {shown}"
