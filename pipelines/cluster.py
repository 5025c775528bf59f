"""The one place where Ray starts: joins the cluster of ``RAY_ADDRESS``, or starts a local one.

Ray is imported inside the functions, because it reads its variables when it is imported. What is special:

- Authentication is always settled before Ray starts. Left alone, Ray turns tokens on for local clusters and
  saves one in the home folder, but never for a cluster joined by its address; so what worked on a fresh
  machine fails after the first local run. A local Ray listens on all network interfaces, so ours gets a token
  of its own, which lives in the variables of this process and its children only.
- Every local Ray has a folder of its own, since several on one host mislead each other through a shared one;
  others on this host cannot enter it.
- Ray gives a node 30 s to start, which a busy machine exceeds, and leaves processes behind that make the
  next try fail too. So a start is tried three times, and the processes of a failed one are killed, no others.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from pipelines import env
from pipelines.config import WorkerConfig
from samtok.errors import ClusterError

log = logging.getLogger(__name__)

W = TypeVar("W", bound=WorkerConfig)

_STARTS = 3
_KNOCK_TIMEOUT_S = 10.0
_SOCKET_LIMIT = 107  # bytes of a Unix socket's path
_OWN = "r"
"""Ray's folder inside ours: Ray lets everybody read and write in it."""
_SOCKET_NAME = len("/ray-12345678/r/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")


@dataclass(frozen=True)
class ClusterInfo:
    """What the cluster has in all, busy or not."""

    num_cpus: float
    num_gpus: float
    address: str
    """Host and port of its head, or the address by which it was joined."""
    started_here: bool
    """Whether this process started it, so that it ends with this process."""
    memory_bytes: float = math.inf
    """Memory that tasks may reserve."""

    def require(self, *, cpus: float = 0, gpus: float = 0, memory_bytes: int = 0) -> None:
        """Makes sure that what a job wants to hold at the same time is there: Ray would wait for ever.

        A cluster that was joined may grow: it is asked to, and waited for ``SAMTOK_CLUSTER_WAIT_S`` seconds,
        with a line per minute. Raises ClusterError if the cluster is too small, or stays so.
        """
        wanted = {"CPUs": cpus, "GPUs": gpus, "GiB of memory": memory_bytes / 2**30}
        lacks = self._lacks(wanted)
        if lacks and not self.started_here and env.cluster_wait_s():
            lacks = self._wait_for(wanted, lacks)
        if not lacks:
            return
        name, have = lacks
        more = f"add nodes to the cluster, or wait longer for it to grow ({env.CLUSTER_WAIT_S})"
        if self.started_here:
            more = f"set {env.RAY_ADDRESS} to a cluster that has them"
            more = "let the local Ray count more of them (num_cpus)" if name == "CPUs" else more
        raise ClusterError(
            f"This job needs {wanted[name]:g} {name} at the same time; the cluster at {self.address} has "
            f"{have:g}. Ask for fewer workers, actors or {name} per worker, or {more}."
        )

    def _lacks(self, wanted: dict[str, float]) -> tuple[str, float] | None:
        """Returns what the cluster has too little of, and how much of it there is."""
        have = {"CPUs": self.num_cpus, "GPUs": self.num_gpus, "GiB of memory": self.memory_bytes / 2**30}
        return next(((name, have[name]) for name, asked in wanted.items() if asked > have[name]), None)

    def _wait_for(self, wanted: dict[str, float], lacks: tuple[str, float]) -> tuple[str, float] | None:
        import ray
        from ray.autoscaler.sdk import request_resources

        whole = {name: math.ceil(asked) for name, asked in wanted.items()}
        request_resources(num_cpus=whole["CPUs"], bundles=[{"GPU": 1.0}] * whole["GPUs"])
        started, said, limit = time.monotonic(), -math.inf, env.cluster_wait_s()
        found: tuple[str, float] | None = lacks
        try:
            while found and (waited := time.monotonic() - started) < limit:
                if waited - said >= WAIT_LINE_S:
                    said = waited
                    log.info(
                        "waiting for the cluster at %s: it has %g of %g %s; for %.0f s more at most (%s)",
                        *(self.address, found[1], wanted[found[0]], found[0]),
                        *(limit - waited, env.CLUSTER_WAIT_S),
                    )
                time.sleep(min(WAIT_POLL_S, limit - waited))
                found = _info(ray)._lacks(wanted)
        finally:
            request_resources(num_cpus=0)  # else the nodes would stay for ever
        return found


def gpus_here() -> bool:
    """Returns whether this machine has a GPU that may be used; loads no torch.

    Ray hides GPUs from the driver of a submitted job, which holds none, so there hiding means nothing.
    """
    hidden = os.environ.get(env.CUDA_VISIBLE_DEVICES) in ("", "-1") and not env.is_submitted()
    return not hidden and any(Path("/dev").glob("nvidia[0-9]*"))


def with_device(worker: W, *, on_ray: bool = True) -> W:
    """Fills in how many GPUs each process holds, where it was left to us: 1 if this machine, or the cluster
    that is to be joined, has any. Raises ClusterError if that cluster does not answer."""
    if worker.gpus is not None:
        return worker
    address = env.get(env.RAY_ADDRESS)
    joins = on_ray and bool(address) and address != "local"
    gpus = float(_gpus_of_cluster(address) if joins else gpus_here())
    if joins and not gpus:
        told = (
            "the cluster at %s has no GPUs now, so CPUs compute; GPUs that a worker asks for are waited for"
        )
        log.info(told, address)
    return dataclasses.replace(worker, gpus=gpus)


@functools.cache
def _gpus_of_cluster(_address: str | None) -> bool:
    with session() as cluster:
        return cluster.num_gpus > 0


WAIT_LINE_S, WAIT_POLL_S = 60.0, 3.0
"""Seconds between lines about a cluster that is waited for, and between looks at it."""

_local_folder: Path | None = None
"""Folder of the Ray that this process started, if it did."""


@contextlib.contextmanager
def session(*, num_cpus: int | None = None, at_least_cpus: float = 0) -> Iterator[ClusterInfo]:
    """Connects this process to Ray for the time of the block, and ends what it began and nothing else.

    A cluster that was started is stopped, one that was joined is left, a connection that was there stays.
    Raises ClusterError if no cluster answers at ``RAY_ADDRESS``, or a local one did not start.

    Args:
        num_cpus: CPUs that a local Ray counts, which may be more than there are; None counts the real ones.
        at_least_cpus: A local Ray counts no fewer, unless ``num_cpus`` is given: on a laptop, stages that
            need more workers than it has cores share the cores.
    """
    ray = _import_ray()
    if ray.is_initialized():
        yield _info(ray)
        return
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = env.get(env.RAY_ADDRESS)
    if address and address != "local":
        _join(ray, address, options)
    else:
        if num_cpus is None and at_least_cpus:
            num_cpus = max(len(os.sched_getaffinity(0)), math.ceil(at_least_cpus))
        _start(ray, {**options, "num_cpus": num_cpus})
    try:
        yield _info(ray)
    finally:
        _disconnect(ray)


@contextlib.contextmanager
def pool_session(
    workers: int,
    worker: WorkerConfig,
    *,
    num_cpus: int | None = None,
    spare_cpus: int = 0,
    memory_bytes: int = 0,
) -> Iterator[ClusterInfo]:
    """Opens a session in which that many processes fit at the same time; raises ClusterError if they do not.

    A local Ray counts ``spare_cpus`` more than they need; ``memory_bytes`` are of each.
    """
    cpus = workers * worker.cpus
    with session(num_cpus=num_cpus, at_least_cpus=cpus + spare_cpus) as cluster:
        cluster.require(cpus=cpus, gpus=workers * (worker.gpus or 0), memory_bytes=workers * memory_bytes)
        yield cluster


def runs_in(python: str | None) -> dict[str, Any]:
    """Returns the options of an actor that another Python runs; none for ours."""
    return {} if python is None else {"runtime_env": {"py_executable": python}}


def deaths() -> int:
    """Returns how many times the Ray task that this process does was begun before, so its worker died."""
    from ray._private.worker import global_worker  # no public name in Ray 2.60 (pyproject.toml)

    worker: Any = global_worker
    return worker.core_worker.get_current_task_attempt_number()


def _disconnect(ray: Any) -> None:
    global _local_folder
    ray.shutdown()
    if _local_folder is not None:
        kill_processes_of(_local_folder)
        if not env.get(env.RAY_TMPDIR):  # who names a folder wants to read the logs
            shutil.rmtree(_local_folder, ignore_errors=True)
        _local_folder = None


def _import_ray() -> Any:
    """Imports Ray, after what it reads at import is set."""
    for name, value in env.RAY_DEFAULTS.items():
        os.environ.setdefault(name, value)
    address = env.get(env.RAY_ADDRESS)
    has_token = bool(
        env.get(env.RAY_AUTH_TOKEN)
        or env.get(env.RAY_AUTH_TOKEN_PATH)
        or (Path.home() / ".ray" / "auth_token").exists()
    )
    starts_here = not address or address == "local"
    if not env.get(env.RAY_AUTH_MODE):
        os.environ[env.RAY_AUTH_MODE] = "token" if has_token or starts_here else "disabled"
        if starts_here and not has_token:
            os.environ[env.RAY_AUTH_TOKEN] = secrets.token_hex(32)
    import ray

    return ray


def _info(ray: Any) -> ClusterInfo:
    have = ray.cluster_resources()
    return ClusterInfo(
        num_cpus=have.get("CPU", 0.0),
        num_gpus=have.get("GPU", 0.0),
        address=ray.get_runtime_context().gcs_address,
        started_here=_local_folder is not None,
        memory_bytes=have.get("memory", 0.0),
    )


# ---------------------------------------------------------------- joining


def _join(ray: Any, address: str, options: dict[str, Any]) -> None:
    _knock(address)
    try:
        ray.init(address=address, runtime_env={"env_vars": shipped_variables()}, **options)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        ray.shutdown()
        raise ClusterError(
            f"Could not join the Ray cluster at {address} ({env.RAY_ADDRESS}): {_told(error)}. "
            "Check that it runs (`ray status`) and that authentication is the same on both sides: "
            f"here {env.RAY_AUTH_MODE} is {env.get(env.RAY_AUTH_MODE)}; a cluster with a token needs "
            f"{env.RAY_AUTH_MODE}=token and its token in {env.RAY_AUTH_TOKEN} or {env.RAY_AUTH_TOKEN_PATH}."
        ) from error


def _knock(address: str) -> None:
    """Makes sure that something listens at the address; Ray itself would try for a quarter of an hour."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if "://" in host or not host or not port.isdecimal():
        raise ClusterError(
            f"{env.RAY_ADDRESS} must be HOST:PORT of a Ray head, ray://HOST:PORT or auto, got {address!r}. "
            "An http address is that of the job server: use it with `ray job submit --address`."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(
            f"No Ray cluster answers at {address} ({env.RAY_ADDRESS}): {error}. Start it, correct the "
            f"address, or unset {env.RAY_ADDRESS} to start a local Ray."
        ) from error


def shipped_variables() -> dict[str, str]:
    """Returns the variables that workers of a joined cluster get from this driver; no secrets.

    Those that the submitted job gives them already are left out: Ray refuses to be told twice.
    """
    job = json.loads(env.get(env.RAY_JOB_CONFIG) or "{}")
    told = (job.get("runtime_env") or {}).get("env_vars") or {}
    return {name: value for name in env.SHIPPED_TO_WORKERS if name not in told and (value := env.get(name))}


def _told(error: BaseException) -> str:
    return " ".join(str(error).split())[:500].rstrip(".:") or type(error).__name__


# ---------------------------------------------------------------- starting


def _start(ray: Any, options: dict[str, Any]) -> None:
    global _local_folder
    base = _base_folder()
    for left in reversed(range(_STARTS)):
        folder = Path(tempfile.mkdtemp(prefix="ray-", dir=base))  # nobody else may enter it
        try:
            with env.hidden(env.PYTHONDONTWRITEBYTECODE):
                ray.init(address="local", include_dashboard=False, _temp_dir=str(folder / _OWN), **options)
        except Exception as error:  # Ray raises no narrower one when a node is too slow
            ray.shutdown()
            kill_processes_of(folder)
            if left == 0 or isinstance(error, (ValueError, TypeError)):
                raise ClusterError(
                    f"A local Ray did not start: {_told(error)}. Its logs are in {folder}. The usual reason "
                    "is a busy machine or little free memory; try again, or set "
                    f"{env.RAY_ADDRESS} to a cluster that runs."
                ) from error
            log.warning("Ray did not start (%s); trying again.", _told(error))
            shutil.rmtree(folder, ignore_errors=True)
        else:
            _local_folder = folder
            return


def _base_folder() -> Path:
    """The folder for local Rays: Unix sockets below it must have short paths."""
    asked = env.get(env.RAY_TMPDIR)
    for folder in [asked] if asked else [tempfile.gettempdir(), "/tmp"]:
        if len(os.fsencode(folder)) + _SOCKET_NAME <= _SOCKET_LIMIT and Path(folder).is_dir():
            return Path(folder)
    longest = _SOCKET_LIMIT - _SOCKET_NAME
    raise ClusterError(
        f"Ray cannot put its sockets into {asked or '/tmp'}: the folder must exist and its path have at most "
        f"{longest} characters. Set {env.RAY_TMPDIR} to such a folder."
    )


def kill_processes_of(folder: Path) -> None:
    """Kills the processes of the Ray that lives in the folder; it stands in their command lines."""
    mine = [process for process in psutil.process_iter() if _mentions(process, str(folder))]
    for process in mine:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(mine, timeout=10)


def _mentions(process: psutil.Process, folder: str) -> bool:
    try:
        return process.pid != os.getpid() and any(folder in word for word in process.cmdline())
    except psutil.Error:  # gone, or another user's
        return False
