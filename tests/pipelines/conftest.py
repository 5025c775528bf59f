"""Fixtures of tests that run whole jobs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import env
from pipelines.tracking import Tracker
from tests import corpora
from tests.faulty_store import FaultyStore, faulty_store
from tests.jobs import NUM_IMAGES, flags, run_job


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 64 px shapes in COCO layout, with some crowds, and a tokenizer with random weights."""
    home = tmp_path_factory.mktemp("job")
    corpora.write_shapes(home / "shapes", num_images=NUM_IMAGES, crowd_share=0.1)
    corpora.save_micro_tokenizer(home / "micro")
    return home


@pytest.fixture(scope="session")
def whole(home: Path) -> Path:
    """The corpus of words of an uninterrupted run of the job."""
    out = home / "whole"
    code, output = run_job("tokenize_corpus", *flags(home, str(out)), log=home / "whole.log")
    assert code == 0, output[-3000:]
    return out


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow without runs of tests, which takes seconds to make."""
    folder = tmp_path_factory.mktemp("mlflow")
    Tracker(f"sqlite:///{folder}/mlflow.db", experiment="other", home=str(folder)).end()
    return folder / "mlflow.db"


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> Path:
    """A copy of that database in ``tmp_path``."""
    return Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """A store that misbehaves as told, and the variables by which this process finds it."""
    with faulty_store() as store:
        monkeypatch.setenv(env.AWS_ENDPOINT_URL, store.endpoint)
        monkeypatch.setenv(env.AWS_ACCESS_KEY_ID, "test")
        monkeypatch.setenv(env.AWS_SECRET_ACCESS_KEY, "secret-of-the-test")
        monkeypatch.setenv(env.AWS_REGION, "us-east-1")
        monkeypatch.setenv(env.STORAGE_RETRY_S, "20")
        yield store
