"""How many connections a server of ours takes at once: what this process may have open is the limit."""

import resource

CONNECTIONS_MAX = 2048
# What is open besides connections: objects being read, the store's own connections.
_FILES_BESIDE = 128


def connections_max() -> int:
    """Return how many connections there may be, after raising this process's limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS_MAX + _FILES_BESIDE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return (
        CONNECTIONS_MAX
        if soft == resource.RLIM_INFINITY
        else max(1, min(CONNECTIONS_MAX, soft - _FILES_BESIDE))
    )
