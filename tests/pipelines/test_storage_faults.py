"""Faults of one file or object are told from faults of the store, alike on a disk and on S3."""

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import env, storage
from samtok.errors import StorageError
from tests.faulty_store import FaultyStore

NAMES = {
    "folder": "folder",
    "through a file": "a.jpg/b.jpg",
    "255 bytes and more": "x" * 252 + ".jpg",
    "255 bytes, not characters": "é" * 130 + ".jpg",
    "longer than any key": "x" * 1500,
    "longer than any request": "x" * 100_000,
    "data URI": "data:image/png;base64,iVBORw0KGgo=",
    "half a surrogate pair": "\ud800.jpg",
    "not there": "b.jpg",
}
"""Names of no file."""


def reasons(root: str, names: list[str]) -> list[str]:
    """Returns why each of these files below the root cannot be read."""
    found = []
    for name in names:
        for read in (storage.read_bytes, storage.open_input):
            with pytest.raises(storage.ObjectError) as caught:
                read(f"{root}/{name}")
            assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason
            assert len(str(caught.value)) < 1000
        assert not storage.exists(f"{root}/{name}")
        found.append(caught.value.reason)
    return found


def missing_names(root: str) -> None:
    storage.write_bytes(f"{root}/a.jpg", b"x")
    storage.write_bytes(f"{root}/folder/c.jpg", b"x")
    assert reasons(root, list(NAMES.values())) == ["missing"] * len(NAMES)


def test_names_of_no_file_are_missing_on_a_disk(tmp_path: Path):
    missing_names(str(tmp_path))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert reasons(str(tmp_path), ["loop", "a\0b"]) == ["missing"] * 2


@pytest.mark.slow
def test_names_of_no_file_are_missing_on_s3_as_on_a_disk(bucket: str):
    missing_names(bucket)
    with pytest.raises(storage.ObjectError):
        storage.read_bytes(bucket)  # no key at all


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_the_fault_of_what_names_it(bucket: str):
    with pytest.raises(storage.ObjectError, match="Make the bucket or correct its name") as caught:
        storage.read_bytes("s3://no-such-bucket/a.jpg")
    assert caught.value.reason == "bucket"


@pytest.fixture
def store(store: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> FaultyStore:
    monkeypatch.setenv(env.STORAGE_RETRY_S, "0.3")
    return store


REFUSED = """
import os, sys
from pipelines import storage
os.setuid(65534) if os.geteuid() == 0 else None  # root may read anything
for read in (storage.read_bytes, storage.open_input):
    try:
        read(sys.argv[1])
    except storage.ObjectError as error:
        print(error.reason)
"""


def test_a_refused_file_or_object_is_its_own_fault_and_not_the_stores(tmp_path: Path, store: FaultyStore):
    private = tmp_path / "a.jpg"
    private.write_bytes(b"x")
    private.chmod(0)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    said = subprocess.run(
        [sys.executable, "-c", REFUSED, str(private)], capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["refused"] * 2, said.stderr
    store.objects["/b/a.jpg"] = (b"x", "")
    store.refused.add("/b/a.jpg")
    for read in (storage.read_bytes, storage.open_input, storage.exists):
        with pytest.raises(storage.ObjectError) as caught:
            read("s3://b/a.jpg")
        assert caught.value.reason == "refused"


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("fault", ["reset", "503", "slow"])
def test_a_fault_of_the_store_is_retried_and_then_no_fault_of_the_object(store: FaultyStore, fault: str):
    store.objects["/b/a.jpg"] = (b"x", "")
    store.faults = [fault]
    assert storage.read_bytes("s3://b/a.jpg") == b"x"
    store.faults = [fault] * 100
    with pytest.raises(StorageError, match="still failing after") as caught:
        storage.read_bytes("s3://b/a.jpg")
    assert not isinstance(caught.value, storage.ObjectError)


@pytest.mark.timeout(20)
def test_a_pipe_a_socket_or_a_device_is_refused_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # the path of a socket is short
        listening.bind("socket.jpg")
        for name in (f"{tmp_path}/pipe.jpg", f"{tmp_path}/socket.jpg", "/dev/null", "/dev/zero"):
            for read in (storage.read_bytes, storage.open_input):
                with pytest.raises(storage.ObjectError, match="Name a regular file") as caught:
                    read(name)
                assert caught.value.reason == "kind"
            assert not storage.exists(name)
