"""One exchange with Redis or Valkey: a lease taken, renewed or given back, and who else holds one.

Two keys of a cluster hold its leases (name → what the node says of itself, name → when its lease ends), a third
changes whenever they do, so that a node that knows them all is told nothing again. One script does it all at
once, by Redis's clock alone: the nodes' own may be wrong. Whatever is in there may have been written by anyone
who can log in: it is bounded here and checked in `leases`.
"""

import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import coredis
import msgspec
import trio
from coredis.exceptions import AuthenticationError, AuthorizationError, UnknownCommandError
from coredis.retry import NoRetryPolicy

from bdnfs.core.errors import BdnfsError, CredentialsError, SpecError, UnavailableError, UpstreamError
from bdnfs.spec.cluster import RedisConfig
from bdnfs.spec.hostlist import HOSTS_MAX

# Its lines are tracebacks of what is reported here in words.
logging.getLogger("coredis").setLevel(logging.CRITICAL + 1)

VALUE_BYTES_MAX = 1024
Act = Literal["look", "take", "renew", "leave"]

# Kept for some leases' time, the keys of a cluster that is no more go by themselves.
_SCRIPT = """
local members, ends, version = KEYS[1], KEYS[2], KEYS[3]
local act, name, value, known = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local ttl_ms, members_max, bytes_max = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local changed, held = false, 'mine'

local function drop(gone)
  redis.call('ZREM', ends, gone)
  redis.call('HDEL', members, gone)
  changed = true
end

for _, gone in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', now_ms)) do drop(gone) end
local other = redis.call('HGET', members, name)
if act == 'leave' then
  if other == value then drop(name) end
elseif act == 'renew' and other and other ~= value then
  held = 'taken'
elseif act ~= 'look' then
  if not other and redis.call('HLEN', members) >= members_max then
    held = 'full'
  else
    changed = changed or other ~= value
    redis.call('HSET', members, name, value)
    redis.call('ZADD', ends, now_ms + ttl_ms, name)
  end
end
local count = redis.call('HLEN', members)
if count > members_max then
  return redis.error_reply('ERR more leases than a cluster has members')
end
if count ~= redis.call('ZCARD', ends) then
  -- Redis dropped a key, or someone else wrote one: what has no end gets one, what has nothing else goes.
  for _, each in ipairs(redis.call('HKEYS', members)) do
    if not redis.call('ZSCORE', ends, each) then redis.call('ZADD', ends, now_ms + ttl_ms, each) end
  end
  for _, each in ipairs(redis.call('ZRANGE', ends, 0, -1)) do
    if redis.call('HEXISTS', members, each) == 0 then redis.call('ZREM', ends, each) end
  end
  changed = true
end
local current = redis.call('GET', version)
if changed or not current then
  current = string.format('%s.%06d', time[1], time[2])
  redis.call('SET', version, current)
end
if act ~= 'look' then
  for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, 10 * ttl_ms) end
end
if current == known then return {held, current} end
local listed = {}
local all = redis.call('HGETALL', members)
for i = 1, #all, 2 do
  if #all[i] <= bytes_max and #all[i + 1] <= bytes_max then
    listed[#listed + 1] = all[i]
    listed[#listed + 1] = all[i + 1]
  end
end
return {held, current, listed}
"""


class Reply(msgspec.Struct, frozen=True):
    """What Redis said.

    held:    mine: nobody else holds the name; taken: another incarnation does; full: there is no room
    version: to be said the next time
    listed:  what each member says of itself, by name; None: nothing changed since the version known
    """

    held: Literal["mine", "taken", "full"]
    version: bytes
    listed: dict[bytes, bytes] | None


class Exchange:
    """A connection to Redis, for the leases of one cluster."""

    def __init__(self, client: "coredis.Redis[bytes]", config: RedisConfig, cluster: str) -> None:
        self._client, self._config = client, config
        # In braces: a Redis of many nodes keeps keys of one tag together.
        self._keys = [f"bdnfs:{{{cluster}}}:{key}" for key in ("members", "ends", "version")]

    async def __call__(
        self, act: Act, name: str, value: bytes, known: bytes, ttl_s: float, deadline_s: float
    ) -> Reply:
        """Act for the node called name; raises CredentialsError, UnavailableError or UpstreamError.

        value:      what the node says of itself; known: the version it knows, b"": none
        ttl_s:      how long the lease lasts unless it is renewed
        deadline_s: seconds after which an answer comes too late
        """
        arguments: list[str | bytes | int] = [
            act,
            name,
            value,
            known,
            round(ttl_s * 1000),
            HOSTS_MAX,
            VALUE_BYTES_MAX,
        ]
        try:
            with trio.fail_after(deadline_s):
                answer: Any = await self._client.eval(_SCRIPT, self._keys, arguments)
            listed = answer[2] if len(answer) > 2 else None
            return Reply(
                answer[0].decode(),
                answer[1],
                None if listed is None else dict(zip(listed[::2], listed[1::2], strict=True)),
            )
        except Exception as error:
            # Whatever the client meets, a node goes on without it.
            raise _mapped(error, self._config) from None


@asynccontextmanager
async def open_exchange(
    config: RedisConfig, cluster: str, tls: ssl.SSLContext | None, connect_s: float
) -> AsyncIterator[Exchange]:
    """Yield what talks to the Redis of config; it connects at the first exchange.

    Nothing but a cancellation may leave the block: the client's own tasks would make a group of it.
    """
    client = coredis.Redis(
        config.host,
        config.port,
        config.database,
        username=config.username,
        password=config.password.value if config.password else None,
        ssl_context=tls,
        connect_timeout=connect_s,
        max_connections=1,
        verify_version=False,
        retry_policy=NoRetryPolicy(),
    )
    async with client:
        yield Exchange(client, config, cluster)


def tls_context(config: RedisConfig) -> ssl.SSLContext | None:
    """Return what checks the certificate of config's Redis; raise SpecError for a CA that can't be read."""
    if not config.tls:
        return None
    try:
        return ssl.create_default_context(cafile=config.ca)
    except (OSError, ValueError) as error:
        raise SpecError(
            f"reading the CA for {config} from {config.ca}: {error}; give a PEM file with its certificate"
        ) from None


def _mapped(error: BaseException, config: RedisConfig) -> BdnfsError:
    """Return what a user is told; Redis's own words hold no password, and are bounded."""
    said = " ".join(str(error).split())[:200] or type(error).__name__
    asking = f"asking {config} for the cluster's members"
    if isinstance(error, AuthenticationError):
        return CredentialsError(f"{asking}: it refused the user or the password; mend them in cluster.redis")
    if isinstance(error, AuthorizationError) or "can't run this command" in said or "NOPERM" in said:
        return CredentialsError(
            f"{asking}: its user may not do what is needed ({said}); docs name the rights it needs"
        )
    if isinstance(error, UnknownCommandError):
        return UpstreamError(f"{asking}: it is too old or no Redis ({said}); Redis 6.2 or newer, or Valkey")
    refused = _caused(error, ssl.SSLCertVerificationError)
    if refused is not None:
        return UpstreamError(
            f"{asking}: its certificate is not trusted ({refused.verify_message}); set ca in cluster.redis"
        )
    if isinstance(error, trio.TooSlowError | TimeoutError):
        said = "no answer in time"
    return UnavailableError(f"{asking}: {said}; is it running, and can it be reached from here?")


def _caused(error: BaseException | None, kind: type[ssl.SSLCertVerificationError]) -> Any:
    """Return the error of that kind that led to error, or None."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error
