"""MLflow behind one adapter, with an off switch.

Tracking never ends a run: a server that fails is reported once as a warning, and the work goes on; an item
that MLflow refuses is left out alone. The run id is kept beside the results, so a resumed job continues the
same MLflow run.
"""

import contextlib
import fcntl
import json
import logging
import os
import posixpath
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipelines import provenance, storage
from samtok.checkout import commit

log = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_URI = "sqlite:///mlflow.db"
RUN_FILE = "mlflow_run.json"
_MAX_PARAM, _MAX_TAG, _MAX_NAME, _MAX_DIGEST = 500, 5000, 250, 36
_MAX_METRICS, _MAX_PARAMS = 1000, 100  # MLflow takes no more in a request
_OPENING_S = 30.0
"""Runs that begin at the same time make the same database and experiment, which fails for all but one."""
_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""By it MLflow's pages open at the runs and their curves, not at traces of calls."""


class Tracker:
    """One MLflow run, or nothing at all if the URI is ``off``.

    An experiment is made if there is none. The run id is kept in the folder ``home``, after which a run
    without ``name`` is named; ``parent`` is the id of the run that this one is a part of.
    """

    def __init__(
        self, uri: str, *, experiment: str, home: str, name: str | None = None, parent: str | None = None
    ) -> None:
        self.run_id: str | None = None
        self.link = "off"
        self._failed: set[str] = set()
        self._left_out: set[str] = set()
        self._client: Any = None
        self._uri = uri
        if uri != "off":
            self._try(lambda: self._open(experiment, home, name, parent))

    def _open(self, experiment: str, home: str, name: str | None, parent: str | None) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        import mlflow  # noqa: F401 its loggers are set up

        for logger in ("mlflow", "mlflow.store.db.utils"):  # each sets its own level when it is imported
            logging.getLogger(logger).setLevel(logging.WARNING)
        with _alone(self._uri):
            client, folder = _repeated(lambda: self._experiment(experiment))
        self.run_id = self._resumed(client, home)
        if self.run_id is None:
            name = name or f"{experiment} {home.rstrip('/').rpartition('/')[2]}"
            tags = _source() | ({"mlflow.parentRunId": parent} if parent else {})
            self.run_id = client.create_run(folder, run_name=name, tags=tags).info.run_id
        self._client = client
        self.link = f"{self._uri} experiment {experiment} run {self.run_id}"
        record = {"tracking_uri": self._uri, "experiment": experiment, "run_id": self.run_id}
        storage.write_bytes(storage.join(home, RUN_FILE), json.dumps(record).encode())

    def _experiment(self, name: str) -> tuple[Any, str]:
        """Returns a client and the id of an experiment."""
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=self._uri)
        found = client.get_experiment_by_name(name)
        if found is None:
            return client, self._new_experiment(client, name)
        for tag, value in _KIND.items():
            if tag not in found.tags:
                client.set_experiment_tag(found.experiment_id, tag, value)
        return client, found.experiment_id

    def _new_experiment(self, client: Any, name: str) -> str:
        """Makes an experiment; artifacts of a database go beside it, not into the working directory."""
        if not self._uri.startswith("sqlite:///"):
            return client.create_experiment(name, tags=_KIND)
        database = Path(self._uri.removeprefix("sqlite:///")).absolute()
        folder = (database.parent / "mlruns" / name).as_uri()
        return client.create_experiment(name, artifact_location=folder, tags=_KIND)

    def _resumed(self, client: Any, home: str) -> str | None:
        import mlflow

        where = storage.join(home, RUN_FILE)
        if not storage.exists(where):
            return None
        record = storage.read_json(where)
        if record["tracking_uri"] != self._uri:
            return None
        try:
            client.update_run(record["run_id"], status="RUNNING")
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None  # another database under the same name, as sqlite in another folder
        return record["run_id"]

    def params(self, values: Mapping[str, Any]) -> None:
        """Logs parameters; nested mappings become dotted names. A resumed run keeps its first values."""
        flat = {valid_name(name): _text(value, _MAX_PARAM) for name, value in _flatten(values).items()}

        def work() -> None:
            from mlflow.entities import Param

            known = self._client.get_run(self.run_id).data.params
            new = [Param(name, value) for name, value in flat.items() if name not in known]
            for start in range(0, len(new), _MAX_PARAMS):
                self._send(new[start : start + _MAX_PARAMS], "params")

        self._try(work)

    def tags(self, values: Mapping[str, Any]) -> None:
        """Sets tags."""

        def work() -> None:
            from mlflow.entities import RunTag

            for name, value in values.items():
                self._send([RunTag(valid_name(name), _text(value, _MAX_TAG))], "tags")

        self._try(work)

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Logs metrics of one step in one call."""
        self.history([(step, values)])

    def history(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Logs metrics of many steps, a thousand numbers a call."""

        def work() -> None:
            from mlflow.entities import Metric
            from mlflow.utils.time import get_current_time_millis

            now, batch = get_current_time_millis(), []
            for step, values in rows:
                for name, value in values.items():
                    try:
                        batch.append(Metric(valid_name(name), float(value), now, step))
                    except (TypeError, ValueError) as error:
                        self._leave_out(name, error)
            for start in range(0, len(batch), _MAX_METRICS):
                self._send(batch[start : start + _MAX_METRICS], "metrics")

        if rows:
            self._try(work)

    def last_step(self, name: str, *, default: int) -> int:
        """Returns the last step at which a metric was logged, also before the run was resumed."""
        found = [default]

        def work() -> None:
            found.extend(
                point.step for point in self._client.get_metric_history(self.run_id, valid_name(name))
            )

        self._try(work)
        return max(found)

    def picture(self, data: bytes, name: str) -> None:
        """Stores a picture, or any bytes, as an artifact file."""

        def work() -> None:
            folder, _, file = valid_name(name).rpartition("/")
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / file
                path.write_bytes(data)
                self._client.log_artifact(self.run_id, str(path), folder or None)

        self._try(work, artifact=name)

    def folder(self, uri: str, folder: str) -> None:
        """Uploads the files of a folder, local or on object storage."""

        def work() -> None:
            for info in storage.list_files(uri):
                self.picture(storage.read_bytes(info.uri), f"{folder}/{info.uri.rpartition('/')[2]}")

        self._try(work)

    def text(self, text: str, name: str) -> None:
        """Stores text as an artifact file."""
        self.picture(_text(text).encode(), name)

    def dataset(self, name: str, *, digest: str, source: str) -> None:
        """Notes which data the run was about, by name, digest and the URI of their source."""

        def work() -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            kind = "s3" if storage.is_remote(source) else "local"
            where = json.dumps({"uri": _text(source)})
            data = Dataset(_text(name, _MAX_PARAM), _text(digest, _MAX_DIGEST), kind, where)
            tags = [InputTag("mlflow.data.context", "evaluation")]
            self._client.log_inputs(self.run_id, datasets=[DatasetInput(data, tags)])

        self._try(work)

    def end(self, status: str = "FINISHED") -> None:
        """Closes the run as FINISHED or FAILED, also where tracking has failed before."""
        if self._client is not None:
            self._failed.clear()
            self._try(lambda: self._client.set_terminated(self.run_id, status))

    def _send(self, batch: list[Any], kind: str) -> None:
        """Sends items of a kind; of a batch that is refused, all that would be taken."""
        try:
            self._client.log_batch(self.run_id, **{kind: batch})
        except Exception as error:
            if not _is_refusal(error):
                raise
            if len(batch) == 1:
                self._leave_out(batch[0].key, error)
            else:
                half = len(batch) // 2
                self._send(batch[:half], kind)
                self._send(batch[half:], kind)

    def _leave_out(self, item: str, error: Exception) -> None:
        if item not in self._left_out:
            self._left_out.add(item)
            log.warning("MLflow refuses %s, which is left out: %s", item, _told(error))

    def _try(self, work: Callable[[], Any], *, artifact: str | None = None) -> None:
        part = "the run" if artifact is None else "artifacts"  # which may have a store of their own
        if self._uri == "off" or self._failed & {"the run", part}:
            return
        try:
            work()
        except Exception as error:  # noqa: BLE001 a tracking server may fail in any way; results must not
            if artifact is not None and _is_refusal(error):
                self._leave_out(artifact, error)
                return
            self._failed.add(part)
            log.warning(
                "tracking of %s at %s failed, the job goes on without it (%s). "
                "Check --tracking or set it off.",
                *(part, self._uri, _told(error)),
            )


def valid_name(name: str) -> str:
    """Returns the name that MLflow takes for a metric, param, tag or artifact, such as ``iou_50`` for
    ``iou@50``; most names stay."""
    path = posixpath.normpath("/" + re.sub(r"[^/\w.\- :]", "_", name)).strip("/")
    return (
        re.sub(r"^\.\.", "_.", path)[:_MAX_NAME].rstrip("/") or "_"
    )  # which MLflow takes for a parent folder


def _source() -> dict[str, str]:
    """Returns the tags by which MLflow shows where a run comes from."""
    from mlflow.tracking.context.registry import resolve_tags

    command = {"mlflow.note.content": f"```\n{_text(provenance.command(), _MAX_TAG)}\n```"}
    return {**resolve_tags(), "mlflow.source.git.commit": commit(), **command}


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Makes the folder of a SQLite database, and lets one process at a time make the database in it: MLflow's
    own steps there spoil each other. A file system without locks is left to ``_repeated``."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    folder = Path(uri.removeprefix("sqlite:///")).absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _repeated(work: Callable[[], T]) -> T:
    """Repeats what others may have done halfway at this moment."""
    end = time.monotonic() + _OPENING_S
    while True:
        try:
            return work()
        except Exception as error:
            if not _is_race(error) or time.monotonic() > end:
                raise
            time.sleep(random.uniform(0.2, 1.0))


def _is_race(error: Exception) -> bool:
    """Returns whether an error may be that another run makes the same database or experiment."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return (
        bool(names & {"OperationalError", "IntegrityError", "CommandError"})
        or getattr(error, "error_code", None) == "RESOURCE_ALREADY_EXISTS"
        or "out-of-date database schema" in str(error)
    )


def _is_refusal(error: Exception) -> bool:
    """Returns whether MLflow says that an item is wrong, not that it cannot be reached or lets nobody in."""
    status = getattr(error, "get_http_status_code", lambda: 500)()
    return status in (400, 409, 413, 422)


def _text(value: Any, limit: int | None = None) -> str:
    """Returns what any database stores: no lone surrogates, no NUL."""
    return str(value).encode("utf-8", "replace").decode().replace("\0", "?")[:limit]


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
