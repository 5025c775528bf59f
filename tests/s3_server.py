"""A true S3 server for tests: one node of OpenStack Swift with its S3 API, on loopback, data on disk.

It speaks what real object stores speak (signatures, multipart, conditional writes, pagination, range
reads) and keeps its data when it is killed, so tests can kill it and start it again.

Two halves, in one file so that they cannot drift apart:

- ``python tests/s3_server.py ROOT PORT`` runs the server; it needs the packages of
  ``tests/s3_requirements.lock`` and takes PORT to PORT+3.
- ``S3Server`` is for tests: it builds the environment ``.venv-s3`` once, runs that command in it,
  waits until it is healthy, and kills or stops it.
"""

import contextlib
import fcntl
import hashlib
import http.client
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ACCESS_KEY = "test:tester"
SECRET_KEY = "testing"
REGION = "us-east-1"
LISTING_PAGE = 100
"""Keys per listing page; small, so that tests see many pages."""

_START_TIMEOUT_S = 90.0
_BUILD_TIMEOUT_S = 300.0
_BACKENDS = ("object", "container", "account")  # on PORT+1, PORT+2, PORT+3
_PORTS = 1 + len(_BACKENDS)


# ---------------------------------------------------------------- the server (inside .venv-s3)

_COMMON = """[DEFAULT]
swift_dir = {etc}
user = {user}
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
log_level = WARNING
log_address = {root}/no-syslog
"""

_BACKEND = """devices = {root}/devices
mount_check = false
disable_fallocate = true
fsync_default = false
container_update_timeout = 60
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
recon_cache_path = {root}/cache
"""

_PROXY = """[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck listing_formats create_once {s3_filters} proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
conn_timeout = 10
node_timeout = 60
recoverable_node_timeout = 60
[filter:create_once]
paste.filter_factory = s3_server:create_once
[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{name} = {secret} .admin
[filter:s3api]
use = egg:swift#s3api
location = {region}
max_bucket_listing = {page}
"""

_SWIFT = """[swift-hash]
swift_hash_path_suffix = samtok
[storage-policy:0]
name = one
"""

_PLAIN_FILTERS = ("catch_errors", "gatekeeper", "healthcheck", "listing_formats", "slo", "copy")


def create_once(_conf: dict[str, str], **_local: str) -> Callable:
    """A WSGI filter: racing ``If-None-Match: *`` writes of one key have exactly one winner, as S3 promises.

    Swift looks whether the key exists before it receives the body, so two writers can both pass.
    """
    from eventlet.semaphore import Semaphore  # pyright: ignore[reportMissingImports]

    locks: dict[str, Semaphore] = {}

    def wrap(app: Callable) -> Callable:
        def handle(environ: dict, start_response: Callable) -> Iterable[bytes]:
            if "HTTP_IF_NONE_MATCH" not in environ:
                return app(environ, start_response)
            with locks.setdefault(environ["PATH_INFO"], Semaphore()):
                return [b"".join(app(environ, start_response))]

        return handle

    return wrap


def _write_ring(path: Path, port: int) -> None:
    from swift.common.ring.builder import RingBuilder  # pyright: ignore[reportMissingImports]

    builder = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
    disk = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "disk", "weight": 1}
    builder.add_dev(disk)
    builder.rebalance()
    builder.get_ring().save(str(path))


def _write_config(root: Path, port: int) -> dict[str, Path]:
    """Writes rings and config files below ``root``; returns the config file of each process."""
    etc = root / "etc"
    for folder in (etc, root / "devices" / "disk", root / "cache"):
        folder.mkdir(parents=True, exist_ok=True)
    (etc / "swift.conf").write_text(_SWIFT)
    account, name = ACCESS_KEY.split(":")
    values = {"root": root, "etc": etc, "user": pwd.getpwuid(os.getuid()).pw_name}
    values |= {"account": account, "name": name, "secret": SECRET_KEY, "region": REGION, "page": LISTING_PAGE}
    # Copy before slo: the other way round a copy of a multipart object is a copy of its manifest.
    values |= {"s3_filters": "s3api tempauth copy slo"}
    filters = "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in _PLAIN_FILTERS)
    configs = {"proxy": (_COMMON + _PROXY).format(**values, port=port) + filters}
    for step, backend in enumerate(_BACKENDS, start=1):
        configs[backend] = (_COMMON + _BACKEND).format(**(values | {"name": backend, "port": port + step}))
        if not (ring := etc / f"{backend}.ring.gz").exists():
            _write_ring(ring, port + step)
    for process, text in configs.items():
        (etc / f"{process}-server.conf").write_text(text)
    return {process: etc / f"{process}-server.conf" for process in configs}


def _catch_up(root: Path) -> None:
    """Lists again what is stored: a kill can come between an object and its listing, which S3 never shows."""
    from swift.common.direct_client import (  # pyright: ignore[reportMissingImports]
        direct_delete_container_object,
        direct_put_container_object,
    )
    from swift.common.ring import Ring  # pyright: ignore[reportMissingImports]
    from swift.common.utils import set_swift_dir  # pyright: ignore[reportMissingImports]
    from swift.obj.diskfile import read_metadata  # pyright: ignore[reportMissingImports]

    set_swift_dir(str(root / "etc"))
    ring = Ring(str(root / "etc"), ring_name="container")
    for path in (root / "devices" / "disk").glob("objects/*/*/*/*"):
        if path.suffix not in (".data", ".ts"):
            continue
        meta = read_metadata(str(path))
        account, container, name = meta["name"].lstrip("/").split("/", 2)
        part, nodes = ring.get_nodes(account, container)
        headers = {"x-timestamp": meta["X-Timestamp"]}
        if path.suffix == ".ts":
            direct_delete_container_object(nodes[0], part, account, container, name, headers=headers)
            continue
        override = "X-Object-Sysmeta-Container-Update-Override-"  # what a multipart object is listed with
        for listed, stored in (
            ("Size", "Content-Length"),
            ("Etag", "ETag"),
            ("Content-Type", "Content-Type"),
        ):
            headers[f"x-{listed.lower()}"] = meta.get(override + listed, meta[stored])
        direct_put_container_object(nodes[0], part, account, container, name, headers=headers)


def _pid_file(root: Path) -> Path:
    """Holds the process ids once all are started. (No group does: each has its own session.)"""
    return root / "pids"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _run_process(name: str, config: Path, root: Path) -> subprocess.Popen:
    here = Path(__file__).resolve().parent
    script = Path(sys.executable).parent / f"swift-{name}-server"
    with (root / f"{name}.log").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, str(script), str(config)],
            stdout=output,
            stderr=output,
            env=os.environ | {"PYTHONPATH": str(here)},
        )


def serve(root: Path, port: int) -> int:
    """Runs the four server processes until one of them, or the process that started us, ends."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    parent = os.getppid()
    processes: list[subprocess.Popen] = []

    def goes_on(pause_s: float) -> bool:
        """Waits; False when told to stop, or the parent or a server is gone."""
        return not stop.wait(pause_s) and os.getppid() == parent and all(p.poll() is None for p in processes)

    try:
        configs = _write_config(root, port)
        processes += [_run_process(name, configs[name], root) for name in _BACKENDS]
        while not all(_listens(port + step) for step in range(1, _PORTS)):
            if not goes_on(0.05):
                return 1
        _catch_up(root)
        processes.append(_run_process("proxy", configs["proxy"], root))
        _pid_file(root).write_text(" ".join(str(process.pid) for process in processes))
        while goes_on(0.2):
            pass
        return 0 if stop.is_set() else 1
    finally:
        for process in processes:
            process.kill()
            process.wait()


# ---------------------------------------------------------------- for tests


def _uv() -> list[str]:
    if found := shutil.which("uv"):
        return [found]
    if (
        subprocess.run([sys.executable, "-m", "uv", "--version"], capture_output=True, check=False).returncode
        == 0
    ):
        return [sys.executable, "-m", "uv"]
    raise RuntimeError(
        "Slow tests need `uv` to build environments of their own, and there is none on PATH "
        "nor as `python -m uv`. Install it with `pip install uv`, or run only the fast tests."
    )


def _uv_run(*arguments: str) -> None:
    done = subprocess.run(
        [*_uv(), *arguments], capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"An environment of the slow tests could not be built: `uv {' '.join(arguments)}` "
            f"ended with {done.returncode}. Its last words:\n{done.stderr[-2000:]}"
        )


def build_environment(folder: Path, requirements: Path, *options: str) -> Path:
    """Makes an environment unless it is there already; returns its Python. ``options`` are uv's.

    Several test runs may ask at once: one builds, the others wait. A changed lock file rebuilds it.

    Raises:
        RuntimeError: ``uv`` is missing or a package could not be installed.
    """
    python, stamp = folder / "bin" / "python", folder / "built-from"
    with requirements.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        digest = hashlib.sha256(lock.read()).hexdigest()
        if not stamp.exists() or stamp.read_text() != digest:
            _uv_run("venv", "--clear", "--python", sys.executable, str(folder))
            install = ["pip", "install", "--compile-bytecode", *options, "--python", str(python)]
            _uv_run(*install, "-r", str(requirements))
            stamp.write_text(digest)
    return python


def _free_port_block(count: int) -> int:
    """Finds ``count`` free loopback ports in a row, below the range that clients are given."""
    for first in range(21000 + os.getpid() % 900 * 10, 32000, 10):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first
    raise RuntimeError(f"No {count} free loopback ports in a row below 32000 for the S3 test server.")


class S3Server:
    """An S3 server that tests own: start, kill and start again on the same data and port.

    Args:
        root: Empty folder for its data, config and logs; must be on a file system with user attributes
            (ext4, xfs, overlay).
    """

    def __init__(self, root: Path) -> None:
        here = Path(__file__).resolve().parent
        self.root = root
        self.port = _free_port_block(_PORTS)
        self._python = build_environment(here.parent / ".venv-s3", here / "s3_requirements.lock")
        self._process: subprocess.Popen | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """The variables with which any S3 client finds this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": REGION,
        }

    def start(self) -> None:
        """Starts the server on its port and data, and returns when it answers."""
        if self._process is not None:
            raise RuntimeError("the S3 test server is already running")
        self.root.mkdir(parents=True, exist_ok=True)
        command = [str(self._python), str(Path(__file__).resolve()), str(self.root), str(self.port)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        self._process = subprocess.Popen(command, env=environment)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"The S3 test server did not start. Its logs:\n{self._log_tails()}")
            time.sleep(0.05)

    def _healthy(self) -> bool:
        if not _pid_file(self.root).exists():
            return False
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/healthcheck")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _log_tails(self) -> str:
        return "\n".join(f"{log.name}: {log.read_text()[-1000:]}" for log in sorted(self.root.glob("*.log")))

    def kill(self) -> None:
        """Kills all its processes at once (SIGKILL), as a power cut would; the data stays."""
        if self._process is None:
            return
        pids = _pid_file(self.root)
        for pid in pids.read_text().split() if pids.exists() else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        self._process.kill()
        self._wait()

    def stop(self) -> None:
        """Ends the server in order; does nothing if it is not running."""
        if self._process is not None:
            self._process.terminate()
            self._wait()

    def _wait(self) -> None:
        """Returns when the processes are gone and their ports free again."""
        assert self._process is not None
        self._process.wait(timeout=30)
        self._process = None
        _pid_file(self.root).unlink(missing_ok=True)
        while any(_listens(self.port + step) for step in range(_PORTS)):
            time.sleep(0.01)

    def make_bucket(self, name: str) -> str:
        """Makes a bucket, at least three characters long, and returns its URI."""
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name=REGION,
        )
        client.create_bucket(Bucket=name)
        client.close()
        return f"s3://{name}"


if __name__ == "__main__":
    sys.exit(serve(Path(sys.argv[1]).resolve(), int(sys.argv[2])))
