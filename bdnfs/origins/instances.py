"""Connections that can serve one thread at a time, lent to many."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bdnfs.core.errors import ChangedError, NotFoundError, UnavailableError


class Instances:
    """Connections to one store, each used by one thread at a time; a failed one is not used again."""

    def __init__(
        self, connect: Callable[[], Any], disconnect: Callable[[Any], None], count_max: int, wait_s: float
    ) -> None:
        self._connect, self._disconnect, self._wait_s = connect, disconnect, wait_s
        self._free = threading.BoundedSemaphore(count_max)
        self._lock = threading.Lock()
        self._idle: list[Any] = []
        self._shared: Any = None
        self._closed = False

    @contextmanager
    def one(self, doing: str) -> Iterator[Any]:
        """Lend an instance; UnavailableError if none becomes free in time."""
        if self._shared is not None:
            yield self._shared
            return
        if not self._free.acquire(timeout=self._wait_s):
            raise UnavailableError(f"{doing}: no connection became free in {self._wait_s:.0f} s; try again")
        instance = None
        try:
            with self._lock:
                instance = self._idle.pop() if self._idle else None
            instance = instance or self._connect()
            yield instance
        except (NotFoundError, FileNotFoundError, ChangedError, GeneratorExit):
            self._take_back(instance)
            raise
        except BaseException:
            if instance is not None:
                self._disconnect(instance)
            raise
        else:
            self._take_back(instance)
        finally:
            self._free.release()

    def close(self) -> None:
        """Disconnect what is idle now and, as they come back, the others."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for instance in idle:
            self._disconnect(instance)

    def _take_back(self, instance: Any) -> None:
        if instance is None:
            return
        with self._lock:
            if not self._closed:
                if getattr(instance[0], "async_impl", False):
                    self._shared = instance
                else:
                    self._idle.append(instance)
                return
        self._disconnect(instance)
