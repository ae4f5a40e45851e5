"""Which proxy a URL goes through."""

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit


def proxy_for(url: str, proxies: Mapping[str, str]) -> str | None:
    """Return the proxy's URL for url, or None for a direct connection.

    proxies: by scheme (`http`, `https`, `all`), and under `no` the comma-separated hosts, domains,
    addresses and networks that are reached directly, as in NO_PROXY.
    """
    parts = urlsplit(url)
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or _direct(parts.hostname or "", parts.port, proxies.get("no", "")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _direct(host: str, port: int | None, excluded: str) -> bool:
    host = host.lower().rstrip(".")
    for rule in (each.strip().lower() for each in excluded.split(",")):
        name, _, rule_port = rule.rpartition(":") if rule.count(":") == 1 else (rule, "", "")
        if rule_port and rule_port != str(port):
            continue
        name = name.removeprefix("*").strip("[].")
        if rule == "*" or (name and (host == name or host.endswith(f".{name}") or _in_network(host, name))):
            return True
    return False


def _in_network(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
