"""Says whether samtok can work on this machine, and what to do where it cannot.

    python -m pipelines.tools.doctor
    python -m pipelines.tools.doctor --storage s3://bucket/prefix --tracking http://mlflow:5000 --ray

Ends with 0, or with 1 if anything failed. The last block can be pasted into an issue: it has no values of
``AWS_*``, no tokens, and no user names inside URIs.
"""

import argparse
import contextlib
import dataclasses
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from pipelines import env
from pipelines.generation import environment
from pipelines.generation.config import EngineConfig
from pipelines.tools import health
from pipelines.tools.health import Check
from pipelines.tracking import DEFAULT_URI
from samtok.errors import ConfigError

BUDGET_S = 16.0
"""For all checks together; a check that is not done by then fails. Ray has its own time."""
NODE_BUDGET_S = 60.0
"""For the write test of a node, its start included."""
_SECRET_NAME = re.compile(r"TOKEN$|SECRET|PASSWORD|PASSWD|CREDENTIAL|^AWS_|API_KEY")
_USER_IN_URI = re.compile(r"(?<=://)[^/@\s]+@")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.tools.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, default = parser.add_argument, DEFAULT_URI
    add(
        "--storage",
        metavar="URI",
        help="folder or s3:// prefix for the write test, with --ray from every node too; by default a "
        "temporary one",
    )
    add("--tracking", metavar="URI", default=default, help=f"MLflow, or off (default {default})")
    add("--ray", action="store_true", help="really start a local Ray, or join the one of the environment")
    add(
        "--vllm",
        metavar="PYTHON",
        nargs="?",
        const="",
        help="import vLLM in its environment: of this Python, or by default where the engine vllm finds it",
    )
    flags = parser.parse_args(argv)
    settings = list(variables_set())
    with impatient_storage(), tempfile.TemporaryDirectory(prefix="samtok-doctor-") as folder:
        checks = []
        for check in examine(
            flags.storage or folder,
            flags.tracking,
            ray=flags.ray,
            from_nodes=flags.storage,
            vllm=flags.vllm,
        ):
            checks.append(check)
            _say(*lines_of(check))
    failed = sum(check.state == "FAIL" for check in checks)
    warned = sum(check.state == "WARN" for check in checks)
    _say("", f"{failed} failed, {warned} warnings, {len(checks) - failed - warned} ok", "")
    _say(*issue_block(checks, settings))
    return 1 if failed else 0


@contextlib.contextmanager
def impatient_storage() -> Iterator[None]:
    """Lets storage fail within seconds inside the block, unless the user has set another time."""
    if env.get(env.STORAGE_RETRY_S):
        yield
        return
    os.environ[env.STORAGE_RETRY_S] = "4"
    try:
        yield
    finally:
        del os.environ[env.STORAGE_RETRY_S]


def examine(
    storage_uri: str,
    tracking_uri: str,
    *,
    ray: bool = False,
    from_nodes: str | None = None,
    vllm: str | None = None,
) -> Iterator[Check]:
    """Yields the outcome of all checks, in order and as they come.

    ``from_nodes`` is a place that every node of Ray must be able to write to as well; ``vllm`` is the flag's
    text.
    """
    todo: list[tuple[str, Callable[[], Iterable[Check]]]] = [
        ("versions", health.check_versions),
        ("machine", health.check_machine),
        ("disk", health.check_disks),
        ("Ray", health.check_ray_settings),
        ("storage", lambda: health.check_storage(storage_uri)),
        ("tracking", lambda: health.check_tracking(tracking_uri)),
        ("GPUs", health.check_gpus),
        ("tokenizer", health.check_tokenizer),
    ]
    end = time.monotonic() + BUDGET_S
    for name, work in todo:
        yield from in_time(name, work, max(1.0, end - time.monotonic()))
    if ray:
        yield from attempt("Ray, started", lambda: _start_ray(from_nodes))
    if vllm is not None:
        yield from attempt("vLLM, imported", lambda: _import_vllm(vllm or None))


def in_time(name: str, work: Callable[[], Iterable[Check]], limit_s: float) -> list[Check]:
    """Runs a check in a thread; one that does not end in time is left behind and fails."""
    found: list[Check] = []
    thread = threading.Thread(target=lambda: found.extend(attempt(name, work)), daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        remedy = "Check the network and the address; a machine that swaps is also this slow."
        return [Check(name, "FAIL", f"no answer in {limit_s:.0f} s", remedy)]
    return found


def attempt(name: str, work: Callable[[], Iterable[Check]]) -> list[Check]:
    """Runs a check; what breaks inside it is a failed check, not the end of the examination."""
    try:
        return list(work())
    except Exception as error:  # noqa: BLE001 whatever is wrong with this machine belongs in the report
        text = f"{type(error).__name__}: {error}"
        return [Check(name, "FAIL", text, "Look up the message; if it is a fault of samtok, open an issue.")]


def _start_ray(from_nodes: str | None) -> Iterator[Check]:
    """Starts or joins Ray and does a task; then each node writes to the storage, with its own credentials."""
    from pipelines.cluster import session

    started = time.monotonic()
    with session() as cluster:
        import ray

        here, there = _python(), ray.get(ray.remote(num_cpus=0)(_python).remote(), timeout=120)
        nodes = [(node["NodeID"], node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]]
        written = [] if from_nodes is None else list(_written_by_nodes(nodes, from_nodes))
    text = f"nodes: {len(nodes)}, "
    text += f"CPUs: {cluster.num_cpus:g}, GPUs: {cluster.num_gpus:g}; a task came back; "
    text += f"{time.monotonic() - started:.0f} s in all"
    text += "" if here == there else f"; workers have {there}, here is {here}"
    yield Check.of("Ray, started", here == there, text, "Give all nodes the same image.", state="FAIL")
    yield from written


def _written_by_nodes(nodes: Iterable[tuple[str, str]], uri: str) -> Iterator[Check]:
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def work() -> list[Check]:
        return list(health.check_storage(uri))

    tasks = []
    for node, address in nodes:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(num_cpus=0, max_retries=0)(work).options(scheduling_strategy=there)
        tasks.append((address, task.remote()))
    for address, task in tasks:
        name = f"storage, {address}"
        try:
            found = ray.get(task, timeout=NODE_BUDGET_S)
        except RayError as error:
            found = [
                Check(name, "FAIL", f"{type(error).__name__}: {error}", "Look at this node and its logs.")
            ]
        yield from (dataclasses.replace(check, name=name) for check in found)


def _import_vllm(python: str | None) -> Iterator[Check]:
    try:
        place, versions = environment.imported(EngineConfig(engine="vllm", python=python))
    except ConfigError as error:
        yield Check("vLLM, imported", "FAIL", str(error), environment.SETUP)
        return
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield Check("vLLM, imported", "ok", f"{place}: {text}")


def _python() -> str:
    import ray

    return f"Python {sys.version.split()[0]} and Ray {ray.__version__}"


def lines_of(check: Check) -> Iterator[str]:
    """Yields the line of a check, and the line of its remedy if it is not ok."""
    yield f"{check.state:<5} {check.name:<21} {_one_line(check.text)}"
    if check.remedy:
        yield f"{'':<5} {'':<21} -> {_one_line(check.remedy)}"


def variables_set() -> Iterator[str]:
    """Yields ``NAME=value`` of our variables that are set; secrets and ``AWS_*`` only as ``(set)``."""
    for name in env.VARIABLES:
        if value := env.get(name):
            hidden = name in env.SECRETS or _SECRET_NAME.search(name)
            yield f"{name}={'(set)' if hidden else value}"


def issue_block(checks: Iterable[Check], settings: Iterable[str]) -> Iterator[str]:
    """Yields the block for an issue: all checks without remedies, and the variables that are set."""
    yield "Paste from here into an issue:"
    yield "```"
    for check in checks:
        yield f"{check.state} {check.name}: {_one_line(check.text)}"
    yield from settings
    yield "```"


def redact(text: str) -> str:
    """Returns a text without the values of secret variables and without user names in URIs."""
    secrets = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= 4}
    for value in sorted(secrets - {"true", "false"}, key=len, reverse=True):
        text = text.replace(value, "***")
    return _USER_IN_URI.sub("***@", text)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 600 else line[:597] + "..."


def _say(*lines: str) -> None:
    sys.stdout.write("".join(redact(line) + "\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
