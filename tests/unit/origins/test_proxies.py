import pytest

from bdnfs.origins.proxies import proxy_for

PROXY = "http://proxy:3128"


@pytest.mark.parametrize(
    ("no", "url", "direct"),
    [
        ("", "http://host/x", False),
        ("*", "http://host/x", True),
        ("host", "http://host/x", True),
        ("host", "http://HOST./x", True),
        ("host", "http://sub.host/x", True),
        (".host", "http://sub.host/x", True),
        ("*.host", "http://sub.host/x", True),
        ("host", "http://ghost/x", False),
        ("other, host:8080", "http://host:8080/x", True),
        ("host:8080", "http://host:9090/x", False),
        ("127.0.0.0/8", "http://127.3.4.5/x", True),
        ("10.0.0.0/8", "http://127.3.4.5/x", False),
        ("10.0.0.1", "http://10.0.0.1/x", True),
        ("::1", "http://[::1]:80/x", True),
        ("[::1]", "http://[::1]/x", True),
        (",,", "http://host/x", False),
    ],
)
def test_what_is_reached_directly(no: str, url: str, direct: bool) -> None:
    assert (proxy_for(url, {"all": PROXY, "no": no}) is None) is direct


def test_the_schemes_own_proxy_goes_before_all() -> None:
    proxies = {"https": "secure:1", "all": PROXY}
    assert proxy_for("https://h/", proxies) == "http://secure:1"
    assert proxy_for("http://h/", proxies) == PROXY
    assert proxy_for("http://h/", {"https": "secure:1"}) is None
    assert proxy_for("http://h/", {}) is None
