"""The script of faults: which request meets which."""

from benchmarks.servers.faults import Fault, Faults


def test_a_fault_hits_the_matching_requests_it_was_added_for_and_no_more():
    faults = Faults()
    fault = faults.add(Fault(match="/tree/", after=1, times=2))
    asked = ["/api/x/tree/main", "/other", "/a/tree/b", "/a/tree/b", "/a/tree/b"]
    assert [faults.take("GET", path) for path in asked] == [None, None, fault, fault, None]
    assert faults.hits == 2


def test_the_first_added_goes_first_and_then_lets_the_next_through():
    faults = Faults()
    first, second = faults.add(status=500), faults.add(reset=True, times=None)
    assert [faults.take("GET", "/") for _ in range(3)] == [first, second, second]


def test_a_method_is_matched_whole():
    faults = Faults()
    fault = faults.add(method="HEAD", status=500)
    assert [faults.take("GET", "/"), faults.take("HEAD", "/")] == [None, fault]


def test_random_faults_are_the_seeds_and_come_at_the_rate():
    def drawn(seed: int) -> list[Fault | None]:
        faults = Faults()
        faults.random(seed, 0.25)
        return [faults.take("GET", "/") for _ in range(1000)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert 200 < 1000 - drawn(1).count(None) < 300


def test_clear_ends_all_of_them():
    faults = Faults()
    faults.add(times=None, reset=True)
    faults.random(1, 1.0)
    faults.clear()
    assert faults.take("GET", "/") is None
