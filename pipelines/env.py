"""Every environment variable that the pipelines read or set, named once.

Nothing else in ``pipelines/`` spells the name of a variable. Values are read when they are needed, so a
test or a notebook may change them between calls.
"""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from samtok.errors import ConfigError
from samtok.mllm.registry import VARIABLE as SAMTOK_FAMILIES  # modules with further families of MLLMs

STORAGE_RETRY_S = "SAMTOK_STORAGE_RETRY_S"  # seconds for which a failing storage request is repeated
CLUSTER_WAIT_S = "SAMTOK_CLUSTER_WAIT_S"  # seconds that a job waits for nodes of a cluster that grows
SAMTOK_HOME = "SAMTOK_HOME"  # where relative places of a submitted job are

AWS_ENDPOINT_URL = "AWS_ENDPOINT_URL"  # address of the S3 store; unset is AWS itself
AWS_REGION = "AWS_REGION"
AWS_ACCESS_KEY_ID = "AWS_ACCESS_KEY_ID"
AWS_SECRET_ACCESS_KEY = "AWS_SECRET_ACCESS_KEY"
AWS_SESSION_TOKEN = "AWS_SESSION_TOKEN"  # goes with keys that expire
OPENAI_API_KEY = "OPENAI_API_KEY"  # of the server that the engine http asks

RAY_ADDRESS = "RAY_ADDRESS"  # the cluster to join; unset starts a local one; `ray job submit` sets it
RAY_AUTH_MODE = "RAY_AUTH_MODE"  # token or disabled; must be the same on the cluster and here
RAY_AUTH_TOKEN = "RAY_AUTH_TOKEN"
RAY_AUTH_TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
RAY_TMPDIR = "RAY_TMPDIR"  # folder below which a local Ray puts sockets, logs and spilled objects
RAY_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what `ray job submit` tells the driver; Ray's own name
RAY_USAGE_STATS_ENABLED = "RAY_USAGE_STATS_ENABLED"
RAY_ENABLE_UV_RUN_RUNTIME_ENV = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
RAY_DATA_DISABLE_PROGRESS_BARS = "RAY_DATA_DISABLE_PROGRESS_BARS"
RAY_AIR_NEW_OUTPUT = "RAY_AIR_NEW_OUTPUT"

MLFLOW_TRACKING_URI = "MLFLOW_TRACKING_URI"  # where runs are tracked, unless --tracking says it
MLFLOW_HTTP_REQUEST_MAX_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"  # few, so that jobs do not hang

VLLM_LOGGING_LEVEL = "VLLM_LOGGING_LEVEL"
VLLM_ENABLE_V1_MULTIPROCESSING = "VLLM_ENABLE_V1_MULTIPROCESSING"  # 0: vLLM's engine runs inside samplers

CUDA_VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"  # GPUs that may be used; empty hides all
DS_ACCELERATOR = "DS_ACCELERATOR"  # what DeepSpeed runs on; where unset, what the weights are on
LOCAL_RANK = "LOCAL_RANK"  # a worker's number on its machine; Ray Train sets it, DeepSpeed asks for it

OMP_NUM_THREADS = "OMP_NUM_THREADS"
PYTHONDONTWRITEBYTECODE = "PYTHONDONTWRITEBYTECODE"  # with it every worker of Ray compiles all imports anew

VARIABLES = tuple(value for name, value in list(globals().items()) if name.isupper())
"""All of them, for ``doctor``."""

SECRETS = (
    AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY,
    AWS_SESSION_TOKEN,
    OPENAI_API_KEY,
    RAY_AUTH_TOKEN,
    RAY_JOB_CONFIG,
)
"""Those whose values must not be printed."""

RAY_DEFAULTS: Mapping[str, str] = {
    RAY_USAGE_STATS_ENABLED: "0",
    RAY_ENABLE_UV_RUN_RUNTIME_ENV: "0",  # else workers under `uv run` rebuild the environment
    RAY_DATA_DISABLE_PROGRESS_BARS: "1",
    RAY_AIR_NEW_OUTPUT: "0",  # the newer output of Ray Tune cannot be silenced
}
"""What ``cluster.session`` sets before it imports Ray, unless the user has set it."""

SHIPPED_TO_WORKERS = (OMP_NUM_THREADS, STORAGE_RETRY_S, SAMTOK_FAMILIES, AWS_ENDPOINT_URL, AWS_REGION)
"""What workers of a cluster that we did not start are given from the driver. No secret is among them."""


def get(name: str) -> str | None:
    """Returns the value of a variable; unset and empty are both None."""
    return os.environ.get(name) or None


def is_submitted() -> bool:
    """Returns whether this process is the driver of a job that ``ray job submit`` started."""
    return get(RAY_JOB_CONFIG) is not None


def home() -> Path:
    """Returns the folder below which relative places of a submitted job are."""
    return Path(get(SAMTOK_HOME) or "~/samtok").expanduser().absolute()


def storage_retry_s() -> float:
    """Returns how many seconds a failing storage request is repeated; 0 tries once; raises as
    ``_seconds``."""
    return _seconds(STORAGE_RETRY_S, default=120)


def cluster_wait_s() -> float:
    """Returns how many seconds a job waits for a cluster that it joined to have what it needs; raises as
    ``_seconds``."""
    return _seconds(CLUSTER_WAIT_S, default=600)


def _seconds(name: str, *, default: float) -> float:
    """Returns the value of a variable; ConfigError if it holds something else than a number of seconds."""
    text = get(name) or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"{name} must be a number of seconds, 0 or more, got {text!r}.")
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
