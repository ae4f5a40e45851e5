"""nginx before the node: its config, written by us, and its processes, which live no longer than ours.

nginx takes the connections and asks the app over a unix socket, which checks and answers with X-Accel-Redirect: a
place that nobody outside can name. From there nginx sends the file by sendfile: of the share all of it, of a blob the
one Range that the app has seen to be a chunk that is there.

Paths in the config are relative to where nginx is started, so none needs quoting, and the socket's fits.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import trio

from bdnfs.core.backoff import pause_s
from bdnfs.core.errors import SpecError
from bdnfs.serve.node.holdings import BLOBS_LOCATION, SHARE_LOCATION
from bdnfs.spec.cluster import TlsConfig

SOCKET = "app.sock"
_CONFIG, _ERRORS = "nginx.conf", "nginx.log"
_PLACES = ("body", "proxy", "fastcgi", "uwsgi", "scgi")
_WORKERS_MAX = 4
_START_S, _POLL_S = 10.0, 0.02
_QUIT_S, _KILL_S = 10.0, 2.0
_RESTART_S_MAX = 5.0
# What dies with us even where we are killed: asked for by the process that becomes nginx, before it does.
_LAUNCH = (
    "import ctypes,os,signal,sys;"
    "ctypes.CDLL(None).prctl(1,signal.SIGTERM,0,0,0);"  # PR_SET_PDEATHSIG
    "os.getppid()==int(sys.argv[1]) or sys.exit(1);"
    "os.execv(sys.argv[2],sys.argv[2:])"
)


def find_nginx() -> str | None:
    """Return the path of the nginx that is installed here, or None."""
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    return os.path.realpath(found) if found else None


def config_text(listens: Sequence[str], tls: TlsConfig | None, pid: int, connections_max: int) -> str:
    """Return nginx's config.

    listens: each an address as nginx has it, such as 127.0.0.1:7891; pid: of the process whose open blobs are sent
    """
    # Who is root stays it: the cache belongs to root, and nobody else may enter.
    user = "user root root;\n" if os.geteuid() == 0 else ""
    ssl = " ssl" if tls else ""
    places = "\n".join(f"  {name}_temp_path {name}.temp;" for name in _places())
    return f"""# Written by bdnfs at each start; changes are lost.
{user}daemon off;
worker_processes {min(_WORKERS_MAX, os.cpu_count() or 1)};
pid nginx.pid;
error_log {_ERRORS} crit;
events {{ worker_connections {connections_max}; }}
http {{
  access_log off;
  server_tokens off;
  default_type application/octet-stream;
  sendfile on;
  sendfile_max_chunk 1m;
  tcp_nopush on;
  etag off;
  if_modified_since off;
  keepalive_timeout 60s;
  keepalive_requests 1000000;
  client_max_body_size 64k;
  client_header_timeout 15s;
  client_body_timeout 15s;
  send_timeout 20s;
  reset_timedout_connection on;
{places}
  upstream app {{
    server unix:{SOCKET};
    keepalive 64;
    keepalive_requests 1000000;
    keepalive_timeout 10s;
  }}
  server {{
{chr(10).join(f"    listen {each}{ssl};" for each in listens)}
{_tls(tls)}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host $http_host;
    proxy_set_header Bdnfs-Client $remote_addr;
    proxy_set_header Bdnfs-Server $server_addr;
    proxy_buffering off;
    proxy_connect_timeout 5s;
    proxy_read_timeout 120s;
    proxy_next_upstream off;
    location / {{
      proxy_pass http://app;
    }}
    # Evicted between the app's answer and nginx's look: the app is asked once more.
    location @again {{
      proxy_pass http://app$request_uri;
    }}
    location {SHARE_LOCATION} {{
      internal;
      max_ranges 0;
      alias ../share/;
      error_page 404 = @again;
      add_header Bdnfs-Tier $upstream_http_bdnfs_tier;
    }}
    location {BLOBS_LOCATION} {{
      internal;
      max_ranges 1;
      alias /proc/{pid}/fd/;
      error_page 404 = @again;
      add_header Bdnfs-Tier $upstream_http_bdnfs_tier;
    }}
  }}
}}
"""


def _places() -> tuple[str, ...]:
    return ("client_body", *_PLACES[1:])


def _tls(tls: TlsConfig | None) -> str:
    if tls is None:
        return ""
    return f"""    ssl_certificate {_quoted(tls.cert)};
    ssl_certificate_key {_quoted(tls.key)};
    ssl_client_certificate {_quoted(tls.ca)};
    ssl_verify_client on;
    ssl_verify_depth 4;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_tickets off;"""


def _quoted(path: str) -> str:
    """Return a path as nginx reads it; raise SpecError for one that it can't be told."""
    if "$" in path or any(not char.isprintable() for char in path):
        raise SpecError(
            f"cluster: {path!r} can't be given to nginx; use paths without '$' and control characters"
        )
    escaped = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class Nginx:
    """One supervised nginx. Its directory is the node's own."""

    def __init__(
        self,
        program: str,
        directory: Path,
        config: str,
        warn: Callable[[str], None],
        answers: Callable[[], bool],
    ) -> None:
        """answers: says whether what listens is up, taking no longer than a second; called in a thread."""
        self._program, self._directory, self._config = program, directory, config
        self._warn, self._answers = warn, answers
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self.restarts = 0

    async def start(self) -> bool:
        """Write the config and start; False, with a warning, where nginx does not come up."""
        (self._directory / _CONFIG).write_text(self._config)
        with suppress(FileNotFoundError):
            (self._directory / _ERRORS).unlink()
        self._spawn()
        with trio.move_on_after(_START_S):
            while self._is_running():
                if await trio.to_thread.run_sync(self._answers):
                    return True
                await trio.sleep(_POLL_S)
        self._warn(f"nginx does not start: {self._said()}")
        await self._give_up()
        return False

    def _spawn(self) -> None:
        # On this thread: a process whose parent dies is told so when the thread that made it ends.
        words = [self._program, "-p", "./", "-c", _CONFIG, "-e", _ERRORS]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *words],
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin")},
        )

    def pids(self) -> list[int]:
        """Return the processes of nginx, the first its master."""
        if self._process is None:
            return []
        found = [self._process.pid]
        with suppress(OSError):
            text = Path(f"/proc/{found[0]}/task/{found[0]}/children").read_text()
            found += [int(pid) for pid in text.split()]
        return found

    async def supervise(self, started: Callable[[], None]) -> None:
        """Start it again whenever it ends, for ever; started: is called each time that it has."""
        failed = 0
        while True:
            await self._ended()
            if self._stopping:
                return
            self._kill()  # workers may have outlived their master, and hold the port
            self.restarts += 1
            failed += 1
            self._warn(f"nginx has ended: {self._said()}; it is started again")
            await trio.sleep(min(pause_s(failed), _RESTART_S_MAX))
            if await self.start():
                failed = 0
                started()

    async def _ended(self) -> None:
        """Return when its master has ended."""
        if self._process is not None and self._is_running():
            # Not yet waited for, so the pid is its own.
            fd = os.pidfd_open(self._process.pid)
            try:
                await trio.lowlevel.wait_readable(fd)
            finally:
                os.close(fd)

    async def stop(self) -> None:
        """End it: what is being sent may end, for some seconds, or until this is cancelled."""
        self._stopping = True
        try:
            await self._end(signal.SIGQUIT, _QUIT_S)
        finally:
            with trio.CancelScope(shield=True):
                await self._give_up()

    async def _give_up(self) -> None:
        await self._end(signal.SIGTERM, _KILL_S)
        self._kill()

    async def _end(self, number: int, limit_s: float) -> None:
        if self._is_running():
            self._signal(number)
            with trio.move_on_after(limit_s):
                while self._is_running():
                    await trio.sleep(_POLL_S)

    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _kill(self) -> None:
        """End whatever is left of its session."""
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _said(self) -> str:
        """Return the last thing that nginx said."""
        try:
            lines = (self._directory / _ERRORS).read_text(errors="replace").split("\n")
        except OSError:
            lines = []
        code = self._process.poll() if self._process else None
        said = next((line for line in reversed(lines) if line.strip()), "nothing was said")
        return f"{said[:300]} (exit code {code})"
