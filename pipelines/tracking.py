"""MLflow behind one adapter, with an off switch.

Tracking never ends a run: a server that fails is reported once as a warning, and the work goes on. The run id
is kept beside the results, so a resumed job continues the same MLflow run.
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines import storage

log = logging.getLogger(__name__)

DEFAULT_URI = "sqlite:///mlflow.db"
RUN_FILE = "mlflow_run.json"
_MAX_PARAM = 500
_MAX_METRICS = 1000  # MLflow takes no more in a request


class Tracker:
    """One MLflow run, or nothing at all if the URI is ``off``.

    An experiment is made if there is none. The run id is kept in the folder ``home``; ``parent`` is that of
    the run that this one is a part of.
    """

    def __init__(
        self, uri: str, *, experiment: str, home: str, name: str | None = None, parent: str | None = None
    ) -> None:
        self.run_id: str | None = None
        self.link = "off"
        self._warned = False
        self._client: Any = None
        self._uri = uri
        if uri != "off":
            self._try(lambda: self._open(experiment, home, name, parent))

    def _open(self, experiment: str, home: str, name: str | None, parent: str | None) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        import mlflow

        for logger in ("mlflow", "mlflow.store.db.utils"):  # each sets its own level when it is imported
            logging.getLogger(logger).setLevel(logging.WARNING)
        if self._uri.startswith("sqlite:///"):
            Path(self._uri.removeprefix("sqlite:///")).absolute().parent.mkdir(parents=True, exist_ok=True)
        client = mlflow.MlflowClient(tracking_uri=self._uri)
        found = client.get_experiment_by_name(experiment)
        folder = found.experiment_id if found else self._new_experiment(client, experiment)
        tags = {"mlflow.parentRunId": parent} if parent else {}
        self.run_id = self._resumed(client, home)
        if self.run_id is None:
            self.run_id = client.create_run(folder, run_name=name, tags=tags).info.run_id
        self._client = client
        self.link = f"{self._uri} experiment {experiment} run {self.run_id}"
        record = {"tracking_uri": self._uri, "experiment": experiment, "run_id": self.run_id}
        storage.write_bytes(storage.join(home, RUN_FILE), json.dumps(record).encode())

    def _new_experiment(self, client: Any, name: str) -> str:
        """Makes an experiment; artifacts of a database go beside it, not into the working directory."""
        if not self._uri.startswith("sqlite:///"):
            return client.create_experiment(name)
        database = Path(self._uri.removeprefix("sqlite:///")).absolute()
        return client.create_experiment(name, artifact_location=(database.parent / "mlruns" / name).as_uri())

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
        flat = _flatten(values)

        def work() -> None:
            known = self._client.get_run(self.run_id).data.params
            for name, value in flat.items():
                if name not in known:
                    self._client.log_param(self.run_id, name, str(value)[:_MAX_PARAM])

        self._try(work)

    def tags(self, values: Mapping[str, Any]) -> None:
        """Sets tags."""
        self._try(lambda: [self._client.set_tag(self.run_id, k, str(v)) for k, v in values.items()])

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Logs metrics of one step in one call."""
        self.history([(step, values)])

    def history(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Logs metrics of many steps, a thousand numbers a call."""

        def work() -> None:
            from mlflow.entities import Metric
            from mlflow.utils.time import get_current_time_millis

            now = get_current_time_millis()
            batch = [Metric(name, float(v), now, step) for step, values in rows for name, v in values.items()]
            for start in range(0, len(batch), _MAX_METRICS):
                self._client.log_batch(self.run_id, metrics=batch[start : start + _MAX_METRICS])

        if rows:
            self._try(work)

    def last_step(self, name: str, *, default: int) -> int:
        """Returns the last step at which a metric was logged, also before the run was resumed."""
        found = [default]

        def work() -> None:
            found.extend(point.step for point in self._client.get_metric_history(self.run_id, name))

        self._try(work)
        return max(found)

    def picture(self, data: bytes, name: str) -> None:
        """Stores a picture, or any bytes, as an artifact file."""

        def work() -> None:
            folder, _, file = name.rpartition("/")
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / file
                path.write_bytes(data)
                self._client.log_artifact(self.run_id, str(path), folder or None)

        self._try(work)

    def folder(self, uri: str, folder: str) -> None:
        """Uploads the files of a folder, local or on object storage."""

        def work() -> None:
            for info in storage.list_files(uri):
                self.picture(storage.read_bytes(info.uri), f"{folder}/{info.uri.rpartition('/')[2]}")

        self._try(work)

    def text(self, text: str, name: str) -> None:
        """Stores text as an artifact file."""
        self._try(lambda: self._client.log_text(self.run_id, text, name))

    def end(self, status: str = "FINISHED") -> None:
        """Closes the run as FINISHED or FAILED."""
        self._try(lambda: self._client.set_terminated(self.run_id, status))

    def _try(self, work: Callable[[], Any]) -> None:
        if self._uri == "off" or self._warned:
            return
        try:
            work()
        except Exception as error:  # noqa: BLE001 a tracking server may fail in any way; results must not
            self._warned = True
            log.warning(
                "tracking at %s failed, the run goes on without it (%s: %s). Check --tracking or set it off.",
                *(self._uri, type(error).__name__, str(error)[:300]),
            )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
