"""What ``doctor`` looks at: each check is a function that returns one or more ``Check``, and changes nothing.

A state of WARN means that runs work, but slowly or not everywhere; FAIL means that some runs cannot work.
Each of them comes with one remedy. Nothing here starts Ray; that is ``doctor --ray``.
"""

import contextlib
import json
import os
import platform
import resource
import shutil
import socket
import sqlite3
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import psutil

import samtok
from pipelines import env, provenance, storage
from samtok.checkout import commit
from samtok.errors import SamtokError

GB = 2**30
PROBE_S = 3.0
"""How long a server may take to answer."""
MIN_MEMORY, LOW_DISK, MIN_DISK, MIN_FILES = 4 * GB, 5 * GB, GB // 2, 4096
OBJECT_STORE_SHARE = 0.3
"""Share of the memory that Ray's object store takes in /dev/shm by default."""
DASHBOARD_PORT = 8265
_CGROUP = Path("/sys/fs/cgroup")


State = Literal["ok", "WARN", "FAIL"]


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    state: State
    text: str
    remedy: str = ""

    @classmethod
    def of(cls, name: str, good: bool, text: str, remedy: str, *, state: State = "WARN") -> "Check":
        """Returns a line that is ok, or has a state with its remedy."""
        return cls(name, "ok", text) if good else cls(name, state, text, remedy)


def check_versions(packages: Iterable[str] = provenance.PACKAGES) -> Iterator[Check]:
    """Our version, Python, and the packages that matter."""
    found, missing = [], []
    for name in packages:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    ours = f"samtok {samtok.__version__} ({commit()}), Python {platform.python_version()}"
    text = ", ".join([ours, *found]) + (f"; not installed: {', '.join(missing)}" if missing else "")
    remedy = "Install the project with its dependencies: pip install -e ."
    yield Check.of("versions", not missing, text, remedy, state="FAIL")


def check_machine() -> Iterator[Check]:
    """Processors, memory, open files, GPUs."""
    memory = _memory()
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    free = min(psutil.virtual_memory().available, memory)
    text = f"{platform.system()} {platform.machine()}, {cpus} CPUs, {_gb(free)} of {_gb(memory)} memory free"
    want = f"Ray and a tokenizer want {_gb(MIN_MEMORY)}: end other programs, or raise the container's limit."
    yield Check.of("machine", free >= MIN_MEMORY, text, want)
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < MIN_FILES:
        yield Check("open files", "WARN", f"at most {files} per process", "Raise it with: ulimit -n 65536")


def check_gpus() -> Iterator[Check]:
    """GPUs as PyTorch sees them."""
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        names = ", ".join(f"{device.name} {_gb(device.total_memory)}" for device in devices)
        yield Check("GPUs", "ok", f"{names}; CUDA {torch.version.cuda}")
    elif shutil.which("nvidia-smi"):
        text = f"there is a driver, but PyTorch {torch.__version__} cannot use it"
        remedy = "Install the PyTorch build that fits the driver (nvidia-smi names its CUDA)."
        yield Check("GPUs", "WARN", text, remedy)
    else:
        yield Check("GPUs", "ok", "none here; everything runs on the CPU")


def check_disks() -> Iterator[Check]:
    """Free space where runs write, and the shared memory that Ray's object store lives in."""
    for name, folder in (("disk, working folder", "."), ("disk, temporary", tempfile.gettempdir())):
        free = shutil.disk_usage(folder).free
        text = f"{_gb(free)} free in {Path(folder).resolve()}"
        remedy = f"Free some space; runs want {_gb(LOW_DISK)}. Ray's is moved by {env.RAY_TMPDIR}."
        state = "FAIL" if free < MIN_DISK else "WARN"
        yield Check.of(name, free >= LOW_DISK, text, remedy, state=state)
    shared = Path("/dev/shm")
    if shared.is_dir():
        size, wanted = shutil.disk_usage(shared).total, OBJECT_STORE_SHARE * _memory()
        text = f"/dev/shm has {_gb(size)}; Ray's object store takes up to {_gb(wanted)}"
        remedy = f"Objects go to disk and are slow; docker run --shm-size={max(1, round(wanted / GB))}g"
        yield Check.of("shared memory", size >= wanted, text, remedy)


def check_ray_settings() -> Iterator[Check]:
    """Which Ray a job would use, and whether the token mode is the same there and here. Starts nothing."""
    mode, address = env.get(env.RAY_AUTH_MODE), env.get(env.RAY_ADDRESS)
    token = _has_token()
    yield _ray_here(mode, token)
    if address is None or address == "local":
        text = f"{env.RAY_ADDRESS} is {address or 'unset'}; jobs start a local Ray"
        yield Check("Ray, address", "ok", text)
    elif address == "auto":
        yield Check("Ray, address", "ok", f"{env.RAY_ADDRESS} is auto; jobs join the Ray of this machine")
    else:  # what `cluster` makes of an unset mode
        yield _ray_there(address, mode or ("token" if token else "disabled"), token)


def _ray_here(mode: str | None, token: bool) -> Check:
    text = f"{env.RAY_AUTH_MODE} is {mode or 'unset'}, {'a' if token else 'no'} token here"
    state, remedy = "ok", ""
    if mode not in (None, "token", "disabled"):
        state, remedy = "FAIL", f"Set {env.RAY_AUTH_MODE} to token or disabled."
    elif mode == "token" and not token:
        state = "FAIL"
        remedy = f"`ray get-auth-token --generate` makes one; {env.RAY_AUTH_TOKEN_PATH} names the cluster's."
    elif mode is None and token:
        state = "WARN"
        remedy = (
            f"export {env.RAY_AUTH_MODE}=token: a Ray that is started here demands the token, and "
            "`ray job submit` sends it only then."
        )
    return Check("Ray, here", state, text, remedy)


def _ray_there(address: str, mode: str, token: bool) -> Check:
    parts = urlsplit(address if "://" in address else f"gcs://{address}")
    try:
        host, port = parts.hostname or "", parts.port or DASHBOARD_PORT
        with socket.create_connection((host, port), timeout=PROBE_S):
            pass
    except (OSError, ValueError) as error:
        remedy = f"Start the cluster (ray start --head), or correct or unset {env.RAY_ADDRESS}."
        return Check("Ray, address", "FAIL", f"{address} does not answer: {error}", remedy)
    scheme, port = (parts.scheme, port) if parts.scheme in ("http", "https") else ("http", DASHBOARD_PORT)
    there = _token_mode(f"{scheme}://{host}:{port}")
    text = f"{address} answers; its token mode is {there or f'not told by {host}:{port} (--ray tries it)'}"
    if there == "token" and (mode != "token" or not token):
        remedy = (
            f"export {env.RAY_AUTH_MODE}=token and point {env.RAY_AUTH_TOKEN_PATH} at the cluster's token."
        )
        return Check("Ray, address", "FAIL", f"{text}, here it is {mode}", remedy)
    if there == "disabled" and mode == "token":
        remedy = f"Anyone who reaches the cluster can use it: start it with {env.RAY_AUTH_MODE}=token too."
        return Check("Ray, address", "WARN", f"{text}, here it is token", remedy)
    return Check("Ray, address", "ok", text)


def _token_mode(dashboard: str) -> str | None:
    """Asks a dashboard, which tells without a token; None if it does not answer or is too old to know."""
    try:
        with urllib.request.urlopen(f"{dashboard}/api/authentication_mode", timeout=PROBE_S) as answer:
            return str(json.load(answer)["authentication_mode"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _has_token() -> bool:
    """Whether Ray would find a token here (``ray._private.authentication``): variable, named file, home."""
    if env.get(env.RAY_AUTH_TOKEN):
        return True
    named = env.get(env.RAY_AUTH_TOKEN_PATH)
    return (Path(named) if named else Path.home() / ".ray" / "auth_token").is_file()


def check_storage(uri: str) -> Iterator[Check]:
    """Writes, lists, reads and deletes a small file below ``uri``, and creates one exclusively."""
    started = time.monotonic()
    try:
        storage.check(uri)
    except SamtokError as error:
        remedy = "Give --storage a folder that you can write to, or s3://bucket/prefix and set AWS_*."
        yield Check("storage", "FAIL", str(error), remedy)
    else:
        text = f"{uri}: write, exclusive create, list, read, delete in {time.monotonic() - started:.1f} s"
        yield Check("storage", "ok", text)


def check_tracking(uri: str) -> Iterator[Check]:
    """Whether MLflow's store answers; an SQLite file is only looked at, never made or migrated."""
    if uri == "off":
        yield Check("tracking", "ok", "off")
    elif uri.startswith("sqlite:///"):
        yield Check("tracking", *_sqlite(Path(uri.removeprefix("sqlite:///").partition("?")[0])))
    elif uri.startswith(("http://", "https://")):
        yield Check("tracking", *_server(uri.rstrip("/")))
    else:
        remedy = "Use sqlite:///FILE, http(s)://HOST or off."
        yield Check("tracking", "WARN", f"{uri} is not checked here", remedy)


def _sqlite(path: Path) -> tuple[State, str, str]:
    if not path.exists():
        if os.access(path.parent, os.W_OK):
            return "ok", f"{path} does not exist yet; the first run makes it", ""
        return "FAIL", f"{path} cannot be made", "Run in a folder that you can write to, or set --tracking."
    try:
        uri = f"{path.resolve().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=PROBE_S)) as connection:
            ((count,),) = connection.execute("select count(*) from runs").fetchall()
    except sqlite3.Error as error:
        said = f"{path} is no MLflow database: {error}"
        return "FAIL", said, "Move it away; the next run makes a new one."
    if not os.access(path, os.W_OK):
        return "FAIL", f"{path} cannot be written", "Correct its permissions, or set --tracking."
    return "ok", f"{path} has {count} runs", ""


def _server(uri: str) -> tuple[State, str, str]:
    try:
        with urllib.request.urlopen(f"{uri}/version", timeout=PROBE_S) as answer:
            there = answer.read(40).decode(errors="replace").strip()
    except urllib.error.HTTPError as error:
        text = f"{uri} answers with {error.code} {error.reason}, not as MLflow does"
        return "FAIL", text, "Check --tracking, and the signing in if a proxy is in between."
    except (OSError, ValueError) as error:
        return "FAIL", f"{uri} does not answer: {error}", "Start it (mlflow server), or set --tracking off."
    here = version("mlflow")
    text = f"{uri} answers, MLflow {there}; here {here}"
    if there.partition(".")[0] != here.partition(".")[0]:
        return "WARN", text, "Give server and client the same major version."
    return "ok", text, ""


def check_tokenizer(uri: str = "tiny") -> Iterator[Check]:
    """Loads a tokenizer, tokenizes a synthetic scene twice and compares codes and masks."""
    from samtok.model.tokenizer import MaskTokenizer
    from samtok.shapes import WorldConfig, make_scene

    remedy = "Reinstall samtok and PyTorch; the weights or the arithmetic here are not what they should be."
    try:
        tokenizer = MaskTokenizer.from_pretrained(uri)
    except SamtokError as error:
        yield Check("tokenizer", "FAIL", str(error), remedy)
        return
    scene = make_scene(0, 0, WorldConfig())
    masks = [shape.mask for shape in scene.objects]
    started = time.monotonic()
    first, again = (tokenizer.reconstruct(scene.image, masks) for _ in range(2))
    pace = (time.monotonic() - started) / 2 / len(masks)
    text = f"{uri}: {len(masks)} masks, mean IoU {first.iou.mean():.2f}, {1000 * pace:.0f} ms a mask"
    equal = bool((first.codes == again.codes).all())
    text += "; equal codes twice" if equal else "; codes differ between two passes"
    yield Check.of("tokenizer", equal, text, remedy, state="FAIL")


def _memory() -> int:
    """Returns the memory in bytes that this process may use: the machine's, or the container's limit."""
    total = psutil.virtual_memory().total
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return min(total, int((_CGROUP / name).read_text()))
        except (OSError, ValueError):  # no such cgroup, or "max"
            continue
    return total


def _gb(size: float) -> str:
    return f"{size / GB:.1f} GB"
