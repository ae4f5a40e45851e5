"""Who does what only one should do at a time: an object in the store, renewed while its holder lives.

Never what keeps data right, only what spares work: a lease that expires while its holder is stopped
costs the work twice. A watcher counts by its own clock how long a lease has not changed, so clocks of
several machines need not agree.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec

from bdnfs.core.errors import UNREADABLE, BdnfsError, NotFoundError
from bdnfs.mirror.store import Store

TERM_S = 60.0
RENEW_S = 15.0
_WATCH_S, _RELEASE_S = 1.0, 5.0
# Clocks of several machines differ; what is an hour old has ended.
_LIVE_S = 3600.0
_JSON = "application/json"
_BYTES_MAX = 1 << 16


class Holder(msgspec.Struct, frozen=True):
    """What a lease says. done, total: bytes of the work, for those who wait; pids: whose process ids."""

    id: str
    host: str
    pid: int
    renewed_s: float
    done: int = 0
    total: int = 0
    pids: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease:
    """One lease, held until released or lost. `lost`: somebody else has it by now."""

    def __init__(self, store: Store, key: str, holder: Holder, version: str) -> None:
        self._store, self._key = store, key
        self._holder, self._version = holder, version
        self.lost = False

    def renew(self, done: int = 0, total: int = 0) -> None:
        """Say that the work goes on; sets `lost` where that comes too late. Raises what the store raises."""
        if self.lost:
            return
        self._holder = msgspec.structs.replace(self._holder, renewed_s=time.time(), done=done, total=total)
        data = msgspec.json.encode(self._holder)
        if not self._store.put(self._key, data, _JSON, self._version):
            self.lost = True
            return
        self._reread()

    def renew_in_time(self) -> None:
        """Renew it if that is due: for who says again and again that the work goes on."""
        if time.time() - self._holder.renewed_s >= RENEW_S:
            self.renew()

    def release(self) -> None:
        """Let it go, unless it was lost. Of a store that is away or slow nobody waits long: it expires there."""
        releasing = threading.Thread(target=self._let_go, name="lease", daemon=True)
        releasing.start()
        releasing.join(_RELEASE_S)

    def _let_go(self) -> None:
        with suppress(BdnfsError):
            self._reread()
            if not self.lost:
                self._store.delete([self._key])

    def _reread(self) -> None:
        held = read(self._store, self._key)
        if held is None or held[0].id != self._holder.id:
            self.lost = True
        else:
            self._version = held[1]


def take(
    store: Store,
    key: str,
    *,
    waiting: Callable[[Holder], bool],
    term_s: float = TERM_S,
    watch_s: float = _WATCH_S,
) -> Lease | None:
    """Return the lease on key once it is free; asks waiting, now and then, whether to go on waiting.

    None once waiting says no. Raises what the store raises.
    """
    ours = Holder(secrets.token_hex(8), socket.gethostname(), os.getpid(), time.time(), pids=_pids())
    seen, since_s = "", time.monotonic()
    while True:
        held = read(store, key)
        if held is None:
            expected = "absent"
        else:
            holder, version = held
            if version != seen:
                seen, since_s = version, time.monotonic()
            if time.monotonic() - since_s < term_s and not _is_dead(holder):
                if not waiting(holder):
                    return None
                time.sleep(watch_s)
                continue
            expected = version
        ours = msgspec.structs.replace(ours, renewed_s=time.time())
        if store.put(key, msgspec.json.encode(ours), _JSON, expected):
            now = read(store, key)
            # A store that can't write conditionally may have let two in: the last one has it.
            if now is not None and now[0].id == ours.id:
                return Lease(store, key, ours, now[1])


def is_live(holder: Holder) -> bool:
    """Say whether a holder may still be at it: by the clock, for who can't wait and watch; generously."""
    return time.time() - holder.renewed_s < _LIVE_S and not _is_dead(holder)


def _is_dead(holder: Holder) -> bool:
    """Say whether a holder has ended for certain: one of this machine, and not in another container."""
    if holder.host != socket.gethostname() or not holder.pids or holder.pids != _pids():
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _pids() -> int:
    """Return what tells our PID namespace from others of this machine: containers may share its name."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def read(store: Store, key: str) -> tuple[Holder, str] | None:
    """Return who holds the lease and its version; None where nobody does. A torn one is nobody's."""
    try:
        held = store.get(key, _BYTES_MAX)
    except NotFoundError:
        return None
    try:
        return msgspec.json.decode(held.data, type=Holder), held.version
    except UNREADABLE:
        return Holder("", "?", 0, 0.0), held.version
