"""Every environment variable that the pipelines read or set, named once.

Nothing else in ``pipelines/`` spells the name of a variable. Values are read when they are needed, so a
test or a notebook may change them between calls.
"""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from samtok.errors import ConfigError

STORAGE_RETRY_S = "SAMTOK_STORAGE_RETRY_S"
SAMTOK_HOME = "SAMTOK_HOME"

AWS_ENDPOINT_URL = "AWS_ENDPOINT_URL"
AWS_REGION = "AWS_REGION"
AWS_ACCESS_KEY_ID = "AWS_ACCESS_KEY_ID"
AWS_SECRET_ACCESS_KEY = "AWS_SECRET_ACCESS_KEY"
AWS_SESSION_TOKEN = "AWS_SESSION_TOKEN"

RAY_ADDRESS = "RAY_ADDRESS"
RAY_AUTH_MODE = "RAY_AUTH_MODE"
RAY_AUTH_TOKEN = "RAY_AUTH_TOKEN"
RAY_AUTH_TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
RAY_TMPDIR = "RAY_TMPDIR"
RAY_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # the name Ray really gives it
RAY_USAGE_STATS_ENABLED = "RAY_USAGE_STATS_ENABLED"
RAY_ENABLE_UV_RUN_RUNTIME_ENV = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
RAY_DATA_DISABLE_PROGRESS_BARS = "RAY_DATA_DISABLE_PROGRESS_BARS"
RAY_AIR_NEW_OUTPUT = "RAY_AIR_NEW_OUTPUT"

MLFLOW_TRACKING_URI = "MLFLOW_TRACKING_URI"
MLFLOW_HTTP_REQUEST_MAX_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"

VLLM_ENABLE_V1_MULTIPROCESSING = "VLLM_ENABLE_V1_MULTIPROCESSING"

CUDA_VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
DS_ACCELERATOR = "DS_ACCELERATOR"
LOCAL_RANK = "LOCAL_RANK"

OMP_NUM_THREADS = "OMP_NUM_THREADS"
PYTHONDONTWRITEBYTECODE = "PYTHONDONTWRITEBYTECODE"

RAY_DEFAULTS: Mapping[str, str] = {
    RAY_USAGE_STATS_ENABLED: "0",
    RAY_ENABLE_UV_RUN_RUNTIME_ENV: "0",  # else workers under `uv run` rebuild the environment
    RAY_DATA_DISABLE_PROGRESS_BARS: "1",
    RAY_AIR_NEW_OUTPUT: "0",  # the newer output of Ray Tune cannot be silenced
}
"""What ``cluster.connect`` sets before it imports Ray, unless the user has set it."""

SHIPPED_TO_WORKERS = (OMP_NUM_THREADS, STORAGE_RETRY_S, AWS_ENDPOINT_URL, AWS_REGION)
"""What workers of a cluster that we did not start are given from the driver. No secret is among them."""


@dataclass(frozen=True)
class Variable:
    """One variable, for ``doctor`` and the README."""

    name: str
    meaning: str
    secret: bool = False

    def shown(self) -> str:
        """Its value as it may be printed: secrets are hidden, unset is ``-``."""
        value = os.environ.get(self.name)
        if not value:
            return "-"
        return "(set)" if self.secret else value


VARIABLES = (
    Variable(STORAGE_RETRY_S, "seconds for which a failing storage request is repeated; default 120"),
    Variable(SAMTOK_HOME, "where relative places of a submitted job are; default ~/samtok"),
    Variable(AWS_ENDPOINT_URL, "address of the S3 store; unset is AWS itself"),
    Variable(AWS_REGION, "region of the S3 store"),
    Variable(AWS_ACCESS_KEY_ID, "name of the S3 account", secret=True),
    Variable(AWS_SECRET_ACCESS_KEY, "its password", secret=True),
    Variable(AWS_SESSION_TOKEN, "goes with keys that expire", secret=True),
    Variable(RAY_ADDRESS, "the Ray cluster to join; unset starts a local one; `ray job submit` sets it"),
    Variable(RAY_AUTH_MODE, "token or disabled; must be the same on the cluster and here"),
    Variable(RAY_AUTH_TOKEN, "the cluster's token", secret=True),
    Variable(RAY_AUTH_TOKEN_PATH, "file that holds the cluster's token"),
    Variable(RAY_TMPDIR, "folder below which a local Ray puts sockets, logs and spilled objects"),
    Variable(RAY_JOB_CONFIG, "what `ray job submit` tells the driver", secret=True),
    Variable(RAY_USAGE_STATS_ENABLED, "0 unless set: Ray reports nothing home"),
    Variable(RAY_ENABLE_UV_RUN_RUNTIME_ENV, "0 unless set: workers use the environment that is there"),
    Variable(RAY_DATA_DISABLE_PROGRESS_BARS, "1 unless set: no progress bars in logs"),
    Variable(RAY_AIR_NEW_OUTPUT, "0 unless set: Ray Tune prints no tables of its own"),
    Variable(MLFLOW_TRACKING_URI, "where runs are tracked, unless --tracking says it"),
    Variable(MLFLOW_HTTP_REQUEST_MAX_RETRIES, "tries of a request to MLflow; few, so that jobs do not hang"),
    Variable(VLLM_ENABLE_V1_MULTIPROCESSING, "0 in samplers: vLLM's engine runs inside them"),
    Variable(CUDA_VISIBLE_DEVICES, "GPUs that may be used; empty hides all"),
    Variable(DS_ACCELERATOR, "what DeepSpeed runs on, cpu or cuda; where unset, what the weights are on"),
    Variable(LOCAL_RANK, "a worker's number on its machine; Ray Train sets it, DeepSpeed asks for it"),
    Variable(OMP_NUM_THREADS, "threads of each worker's maths"),
    Variable(
        PYTHONDONTWRITEBYTECODE, "hidden from a local Ray: with it every worker compiles all imports anew"
    ),
)


def get(name: str) -> str | None:
    """Returns the value of a variable; unset and empty are both None."""
    return os.environ.get(name) or None


def get_raw(name: str) -> str | None:
    """Returns the value of a variable for which empty is not the same as unset."""
    return os.environ.get(name)


def is_submitted() -> bool:
    """Returns whether this process is the driver of a job that ``ray job submit`` started."""
    return get(RAY_JOB_CONFIG) is not None


def home() -> Path:
    """Returns the folder below which relative places of a submitted job are."""
    return Path(get(SAMTOK_HOME) or "~/samtok").expanduser().absolute()


def storage_retry_s() -> float:
    """Returns how many seconds a failing storage request is repeated; 0 tries once.

    Raises:
        ConfigError: the variable holds something else than a number of seconds.
    """
    text = get(STORAGE_RETRY_S) or "120"
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"{STORAGE_RETRY_S} must be a number of seconds, 0 or more, got {text!r}.")
    return seconds


@contextmanager
def hidden(name: str) -> Iterator[None]:
    """Takes a variable away inside the block, so that processes started there do not inherit it."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value
