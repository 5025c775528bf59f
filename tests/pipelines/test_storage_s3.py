"""Storage against a true S3 server: its faults, kills and restarts included."""

import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import env, storage
from samtok.errors import StorageError
from tests.s3_server import LISTING_PAGE, S3Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LARGE = 105 << 20  # bytes; from 100 MiB on an object is written in parts


@pytest.fixture
def standing(s3: S3Server) -> Iterator[S3Server]:
    """The server, for a test that kills it; it runs again afterwards, whatever the test did."""
    yield s3
    s3.kill()
    s3.start()


@pytest.mark.parametrize("key", ["a", "deep/er/a.json", "with space & 50% +ä#?.txt"])
def test_objects_are_written_read_listed_and_deleted(bucket: str, key: str):
    uri = f"{bucket}/{key}"
    storage.write_bytes(uri, b"old")
    storage.write_bytes(uri, b"0123456789")
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b"0123456789"
    assert storage.list_files(bucket) == [storage.FileInfo(uri, 10)]
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)
    assert storage.list_files(bucket) == []


def test_ranges_are_those_of_local_files(bucket: str, tmp_path: Path):
    for folder in (bucket, str(tmp_path)):
        storage.write_bytes(f"{folder}/a", b"0123456789")
        storage.write_bytes(f"{folder}/empty", b"")
    for offset, size in ((0, None), (2, 3), (8, 30), (10, None), (30, 2), (0, 0), (4, 0)):
        for name in ("a", "empty"):
            expected = storage.read_bytes(f"{tmp_path}/{name}", offset=offset, size=size)
            assert storage.read_bytes(f"{bucket}/{name}", offset=offset, size=size) == expected


def test_what_is_missing_is_not_found(bucket: str):
    for read in (storage.read_bytes, storage.open_input, lambda uri: storage.read_bytes(uri, size=0)):
        with pytest.raises(storage.NotFoundError, match=rf"{bucket}/absent: it does not exist"):
            read(f"{bucket}/absent")


@pytest.mark.parametrize(
    "call",
    [
        storage.read_bytes,
        storage.exists,
        storage.list_files,
        lambda uri: storage.write_bytes(uri, b"x"),
        lambda uri: storage.put_if_absent(uri, b"x"),
    ],
)
def test_a_missing_bucket_is_told_at_once(bucket: str, caplog: pytest.LogCaptureFixture, call):
    with pytest.raises(StorageError, match=r"NoSuchBucket.*Make the bucket or correct its name") as caught:
        call("s3://no-such-bucket/a")
    assert not isinstance(caught.value, storage.NotFoundError)
    assert not caplog.records


def test_a_wrong_secret_is_told_at_once_and_not_shown(
    bucket: str, monkeypatch, caplog: pytest.LogCaptureFixture
):
    storage.write_bytes(f"{bucket}/a", b"x")
    monkeypatch.setenv(env.AWS_SECRET_ACCESS_KEY, "not-the-secret")
    for call in (storage.read_bytes, storage.exists, storage.list_files):
        with pytest.raises(
            StorageError, match=r"HTTP 403.*Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) as caught:
            call(f"{bucket}/a")
        assert "not-the-secret" not in str(caught.value)
    assert not caplog.records


def test_listing_is_complete_over_many_pages_and_stays_in_its_folder(bucket: str):
    names = [f"data/{number:04d}" for number in range(LISTING_PAGE * 2 + 30)]
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda name: storage.write_bytes(f"{bucket}/{name}", name.encode()),
                [*names, "data2/x", "dat"],
            )
        )
    found = storage.list_files(f"{bucket}/data")
    assert [file.uri for file in found] == [f"{bucket}/{name}" for name in names]
    assert {file.size for file in found} == {9}
    assert [file.uri for file in storage.list_files(bucket, suffix="x")] == [f"{bucket}/data2/x"]


def test_of_racing_writers_exactly_one_creates_the_object(bucket: str):
    start = threading.Barrier(8)

    def write(writer: int, name: str) -> bool:
        start.wait()
        return storage.put_if_absent(f"{bucket}/{name}", b"%d" % writer * 1000)

    with ThreadPoolExecutor(8) as pool:
        for round_ in range(6):
            won = list(pool.map(lambda writer, name=str(round_): write(writer, name), range(8)))
            assert won.count(True) == 1
            assert storage.read_bytes(f"{bucket}/{round_}") == b"%d" % won.index(True) * 1000


def test_a_bucket_that_can_be_used_passes_the_check_and_stays_clean(bucket: str):
    storage.check(f"{bucket}/run")
    assert storage.list_files(bucket) == []


@pytest.mark.parametrize("threads", [1, 8])
def test_writers_survive_a_kill_and_a_restart_of_the_server(
    bucket: str, standing: S3Server, caplog: pytest.LogCaptureFixture, threads: int
):
    first = threading.Event()

    def commit(shard: int) -> bool:
        won = storage.put_if_absent(f"{bucket}/{shard:02d}", b"%d" % shard)
        first.set()
        return won

    with ThreadPoolExecutor(threads) as pool:
        commits = [pool.submit(commit, shard) for shard in range(40)]
        assert first.wait(60)
        standing.kill()
        standing.start()
        assert [commit.result(120) for commit in commits] == [True] * 40
    assert [storage.read_bytes(file.uri) for file in storage.list_files(bucket)] == [
        b"%d" % n for n in range(40)
    ]
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert 1 <= len(said) <= 3, said  # not one for every one of the tries
    assert "does not answer" in said[0]


def test_an_outage_longer_than_the_patience_is_an_error(bucket: str, standing: S3Server, monkeypatch):
    monkeypatch.setenv(env.STORAGE_RETRY_S, "1")
    standing.kill()
    with pytest.raises(StorageError, match=r"after \d+ s of retries \(SAMTOK_STORAGE_RETRY_S\)"):
        storage.write_bytes(f"{bucket}/a", b"x")


def test_a_read_in_ranges_survives_a_restart_of_the_server(bucket: str, standing: S3Server):
    content = np.random.default_rng(0).bytes(5 << 20)
    storage.write_bytes(f"{bucket}/a", content)
    with storage.open_input(f"{bucket}/a") as file:
        assert file.read(10) == content[:10]
        standing.kill()
        standing.start()
        assert file.read() == content[10:]


def test_an_object_replaced_while_it_is_read_is_an_error_and_not_a_mix(bucket: str):
    storage.write_bytes(f"{bucket}/a", bytes(3 << 20))
    with storage.open_input(f"{bucket}/a") as file:
        file.read(10)
        storage.write_bytes(f"{bucket}/a", b"\1" * (3 << 20))
        file.seek(2 << 20)
        with pytest.raises(StorageError, match="replaced while it was read"):
            file.read(10)


def test_a_large_object_is_written_in_parts_and_copied_whole(bucket: str):
    content = np.random.default_rng(0).bytes(LARGE)
    storage.write_bytes(f"{bucket}/weights.pt", content)
    assert storage.list_files(bucket) == [storage.FileInfo(f"{bucket}/weights.pt", LARGE)]
    path = storage.node_file(f"{bucket}/weights.pt")
    assert path.name == "weights.pt" and path.read_bytes() == content
    assert storage.read_bytes(f"{bucket}/weights.pt", offset=LARGE - 5) == content[-5:]


def test_a_large_object_is_created_once(bucket: str):
    assert storage.put_if_absent(f"{bucket}/weights", bytes(LARGE))
    assert not storage.put_if_absent(f"{bucket}/weights", b"\1" * LARGE)
    assert storage.read_bytes(f"{bucket}/weights", size=10) == bytes(10)


def test_an_input_serves_pyarrow_and_tarfile(bucket: str):
    table = pa.table({"a": np.arange(300_000)})
    pq.write_table(table, parquet := io.BytesIO(), compression="none")
    with tarfile.open(fileobj=(tar := io.BytesIO()), mode="w") as archive:
        for name, content in (("x", bytes(2 << 20)), ("y", b"why")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    storage.write_bytes(f"{bucket}/t.parquet", parquet.getvalue())
    storage.write_bytes(f"{bucket}/t.tar", tar.getvalue())
    with storage.open_input(f"{bucket}/t.parquet") as file:
        assert pq.read_table(file).equals(table)
    with storage.open_input(f"{bucket}/t.tar") as file, tarfile.open(fileobj=file) as archive:
        member = archive.extractfile("y")
        assert member is not None
        assert member.read() == b"why"


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_child_processes_use_the_store_at_once_after_their_parent_did(bucket: str, tmp_path: Path, how: str):
    script = tmp_path / "children.py"
    script.write_text("""
import multiprocessing, sys
from pipelines import storage

def work(number):
    uri = f"{sys.argv[1]}/{number}"
    storage.write_bytes(uri, storage.read_bytes(sys.argv[1] + "/parent"))
    return storage.put_if_absent(sys.argv[1] + "/once", str(number).encode())

if __name__ == "__main__":
    storage.write_bytes(sys.argv[1] + "/parent", b"from the parent")
    with multiprocessing.get_context(sys.argv[2]).Pool(3) as pool:
        won = pool.map(work, range(6), chunksize=1)
    print(won.count(True), storage.read_bytes(sys.argv[1] + "/parent").decode())
""")
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-W", "error", str(script), bucket, how]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("1 from the parent\n", "")
    assert len(storage.list_files(bucket)) == 8


def test_a_large_listing_falls_into_parts_that_have_each_file_once(bucket: str):
    names = [f"sa_{number}.{kind}" for number in range(1, LISTING_PAGE) for kind in ("jpg", "json")]
    with ThreadPoolExecutor(16) as threads:
        list(
            threads.map(lambda name: storage.write_bytes(f"{bucket}/data/{name}", b"x"), [*names, "read.me"])
        )
    few, many = storage.beginnings(f"{bucket}/data", 2), storage.beginnings(f"{bucket}/data", 10)
    assert few[0] == "r" and "sa_1" not in few and {"sa_2", "read"} <= set(many) and len(many) >= 10
    for parts in (few, many):
        found = [file.uri for part in parts for file in storage.iter_files(f"{bucket}/data", beginning=part)]
        assert sorted(found) == sorted(f"{bucket}/data/{name}" for name in [*names, "read.me"])
    assert storage.beginnings(f"{bucket}/nothing", 10) == [""]
