"""Progress on standard error: a bar, plain lines, or JSON lines."""

import sys
import time
from typing import Any

from bdnfs.core.progress import WAITING, View
from bdnfs.core.units import format_duration, format_size

MODES = ("bar", "plain", "json", "none")
_PLAIN_EVERY_S, _JSON_EVERY_S = 5.0, 0.5
_SETTLED = ("whole", "failed", "window")


class Shower:
    """Shows views in one mode; `close` ends the bar. doing: the verb for how bytes come."""

    def __init__(self, mode: str | None, doing: str = "fetch") -> None:
        self._doing = doing
        self._mode = mode or ("bar" if sys.stderr.isatty() else "plain")
        self._began_s = time.monotonic()
        self._next_s = 0.0
        self._settled = ""
        self._first_bytes: int | None = None
        self._first_s = 0.0
        self._warned: set[str] = set()
        self._bar: Any = None

    def restart(self, doing: str) -> None:
        """Begin anew, with another piece of work."""
        self.close()
        self._doing, self._settled, self._first_bytes = doing, "", None
        self._began_s, self._next_s = time.monotonic(), 0.0

    def warn(self, line: str) -> None:
        """Say a warning once."""
        if line in self._warned:
            return
        self._warned.add(line)
        if self._mode == "json":
            self._json({"warning": line})
        elif self._bar is not None:
            self._bar.console.print(f"bdnfs: warning: {line}", markup=False, highlight=False)
        else:
            print(f"bdnfs: warning: {line}", file=sys.stderr)

    def show(self, view: View) -> None:
        """Show how far it is."""
        for line in view.warnings:
            self.warn(line)
        if self._mode == "bar":
            self._show_bar(view)
        elif self._mode != "none":
            self._show_line(view)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show_line(self, view: View) -> None:
        now_s = time.monotonic()
        if view.state == self._settled or (now_s < self._next_s and view.state not in _SETTLED):
            return
        if view.state in _SETTLED:
            self._settled = view.state
        elif view.total_bytes == 0 and now_s - self._began_s < _PLAIN_EVERY_S:
            return  # not long enough yet to say that upstream is being asked
        self._next_s = now_s + (_PLAIN_EVERY_S if self._mode == "plain" else _JSON_EVERY_S)
        if self._mode == "json":
            self._json(
                {
                    "state": view.state,
                    "total_bytes": view.total_bytes,
                    "present_bytes": view.present_bytes,
                    "files": view.files,
                    "files_whole": view.files_whole,
                    "tier_bytes": view.tier_bytes,
                    "elapsed_s": round(now_s - self._began_s, 3),
                }
            )
        elif line := self._plain(view, now_s - self._began_s):
            print(f"bdnfs: {line}", file=sys.stderr, flush=True)

    def _plain(self, view: View, elapsed_s: float) -> str | None:
        """Return a line: what there is to do first, then how far it is, in the end what was done."""
        took, total = format_duration(elapsed_s), format_size(view.total_bytes)
        if view.state in ("failed", "window"):
            return None  # the error, or the command's answer, says it
        fetched_bytes = sum(view.tier_bytes.values())
        fetched = f"{format_size(fetched_bytes)} {self._doing}ed{self._by_tier(view)}"
        if view.state == "whole":
            return f"whole: {total} in {view.files} files, {fetched} in {took}"
        if view.state.startswith(WAITING):
            return f"{view.state}, {took} now"
        if view.total_bytes == 0:
            return f"asking upstream, for {took} now"
        if self._first_bytes is None:
            self._first_bytes, self._first_s = view.present_bytes, elapsed_s
            here = f", {format_size(view.present_bytes)} of it here" if view.present_bytes else ""
            return f"{self._doing}ing {total} in {view.files} files{here}"
        rate = (view.present_bytes - self._first_bytes) / max(elapsed_s - self._first_s, 1e-3)
        left = (
            f", {format_duration((view.total_bytes - view.present_bytes) / rate)} left" if rate >= 1 else ""
        )
        return (
            f"{100 * view.present_bytes // view.total_bytes} %: {format_size(view.present_bytes)} of {total}, "
            f"{view.files_whole} of {view.files} files, {format_size(int(rate))}/s{left}"
        )

    def _by_tier(self, view: View) -> str:
        return f" from {', '.join(sorted(view.tier_bytes))}" if view.tier_bytes else ""

    def _show_bar(self, view: View) -> None:
        if self._bar is None:
            if view.total_bytes == 0:
                return
            self._bar = _rich_bar(view.total_bytes)
        self._bar.update(
            0, description=view.state, completed=view.present_bytes, total=view.total_bytes,
            files=f"{view.files_whole}/{view.files} files{self._by_tier(view)}",
        )  # fmt: skip

    def _json(self, line: dict[str, Any]) -> None:
        import json

        print(json.dumps(line), file=sys.stderr, flush=True)


def _rich_bar(total_bytes: int) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[files]}"),
        console=Console(stderr=True),
    )
    bar.add_task("resolving", total=total_bytes, files="")
    bar.start()
    return bar
