"""Local files, and how faults of a store are met (over real sockets, see tests/faulty_store.py)."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import env, storage
from pipelines.storage import local
from samtok.errors import ConfigError, DataError, StorageError
from tests.faulty_store import FaultyStore


def run_child(code: str, *arguments: str) -> subprocess.Popen:
    """Starts a Python process that runs ``code`` from the repository root."""
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=root, stdout=subprocess.PIPE, text=True
    )


# ---------------------------------------------------------------- URIs


def test_join_appends_names_and_leaves_a_bare_uri_alone():
    assert storage.join("s3://b/run/", "data", "x.parquet") == "s3://b/run/data/x.parquet"
    assert storage.join("/data", "./a/b.jpg", "") == "/data/a/b.jpg"
    assert storage.join("/", "a") == "/a"
    assert storage.join("s3://b/run") == "s3://b/run"


@pytest.mark.parametrize("part", ["../secret", "a/../../secret", "/etc/passwd", "a\0b", ".."])
def test_join_refuses_a_name_that_leaves_the_folder(part: str):
    with pytest.raises(DataError, match=r"must stay inside /data") as caught:
        storage.join("/data", part)
    assert caught.value.reason == "path"


def test_only_s3_is_remote_and_other_schemes_are_refused():
    assert storage.is_remote("s3://b/k")
    assert not storage.is_remote("/a/b")
    assert not storage.is_remote("file:///a/b")
    with pytest.raises(ConfigError, match=r"gs:// is unknown. Use a path, file:// or s3://"):
        storage.is_remote("gs://b/k")


def test_relative_paths_become_absolute_and_uris_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("runs/a") == str(tmp_path / "runs" / "a")
    assert storage.absolute("s3://b/k") == "s3://b/k"


def test_a_file_uri_with_special_characters_survives_listing_and_reading(tmp_path: Path):
    folder = (tmp_path / "a folder").as_uri()
    storage.write_bytes(storage.join(folder, "50% of it.txt"), b"x")
    (found,) = storage.list_files(folder)
    assert (tmp_path / "a folder" / "50% of it.txt").read_bytes() == storage.read_bytes(found.uri) == b"x"


def test_a_file_uri_of_another_host_is_refused():
    with pytest.raises(ConfigError, match="names a host"):
        storage.read_bytes("file://elsewhere/a")


# ---------------------------------------------------------------- local reading and listing


def test_a_range_is_read_and_ends_with_the_file(tmp_path: Path):
    uri = str(tmp_path / "a")
    storage.write_bytes(uri, b"0123456789")
    assert storage.read_bytes(uri) == b"0123456789"
    assert storage.read_bytes(uri, offset=2, size=3) == b"234"
    assert storage.read_bytes(uri, offset=8, size=30) == b"89"
    assert storage.read_bytes(uri, offset=30) == b""
    assert storage.read_bytes(uri, size=0) == b""


def test_a_negative_range_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="0 or more, got -1"):
        storage.read_bytes(str(tmp_path / "a"), offset=-1)


def test_a_missing_file_is_not_found_and_says_what_to_check(tmp_path: Path):
    with pytest.raises(
        storage.NotFoundError, match=r"Cannot read .*absent: it does not exist. Check the URI"
    ):
        storage.read_bytes(str(tmp_path / "absent"))
    with pytest.raises(storage.NotFoundError):
        storage.node_file(str(tmp_path / "absent"))


def test_json_that_is_damaged_names_the_file(tmp_path: Path):
    storage.write_bytes(str(tmp_path / "a.json"), json.dumps({"rows": 3}).encode())
    storage.write_bytes(str(tmp_path / "b.json"), b'{"rows": ')
    assert storage.read_json(str(tmp_path / "a.json")) == {"rows": 3}
    with pytest.raises(DataError, match=r"b\.json must be a JSON document") as caught:
        storage.read_json(str(tmp_path / "b.json"))
    assert caught.value.reason == "json"


def test_listing_is_deep_sorted_filtered_and_knows_sizes(tmp_path: Path):
    for name, size in (("b/2.parquet", 2), ("a.json", 1), ("b/1.parquet", 3), ("b/c/0.parquet", 0)):
        storage.write_bytes(str(tmp_path / name), b"x" * size)
    found = storage.list_files(f"{tmp_path}/", suffix=".parquet")
    names = ["b/1.parquet", "b/2.parquet", "b/c/0.parquet"]
    assert [file.uri for file in found] == [str(tmp_path / name) for name in names]
    assert [file.size for file in found] == [3, 2, 0]


def test_listing_leaves_out_what_a_killed_writer_left_behind(tmp_path: Path):
    (tmp_path / ".tmp-0123").write_bytes(b"half")
    storage.write_bytes(str(tmp_path / "whole"), b"x")
    assert [file.uri for file in storage.list_files(str(tmp_path))] == [str(tmp_path / "whole")]


def test_listing_follows_links_to_folders_and_ends_when_they_lead_back(tmp_path: Path):
    storage.write_bytes(str(tmp_path / "disk" / "a"), b"x")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "up").symlink_to(tmp_path / "disk")
    (tmp_path / "data" / "dead").symlink_to(tmp_path / "nowhere")
    listed = storage.list_files(str(tmp_path / "data"))
    assert [file.uri for file in listed] == [str(tmp_path / "data" / "train" / "a")]


def test_a_folder_that_does_not_exist_has_no_files(tmp_path: Path):
    assert storage.list_files(str(tmp_path / "absent")) == []


def test_a_folder_of_folders_falls_into_them_and_another_stays_whole(tmp_path):
    for name in ("b/1", "b/c/2", "a/3"):
        storage.write_bytes(str(tmp_path / "data" / name), b"x")
    (tmp_path / "data/a/up").symlink_to("..")
    parts = storage.beginnings(str(tmp_path / "data"), 64)
    assert parts == ["a/", "b/"]
    found = [file for part in parts for file in storage.iter_files(str(tmp_path / "data"), beginning=part)]
    assert found == storage.list_files(str(tmp_path / "data"))
    storage.write_bytes(str(tmp_path / "data" / "4"), b"x")
    assert (
        storage.beginnings(str(tmp_path / "data"), 64) == storage.beginnings(str(tmp_path / "no"), 64) == [""]
    )


def test_a_folder_is_not_a_file_and_cannot_be_read(tmp_path: Path):
    assert not storage.exists(str(tmp_path))
    with pytest.raises(StorageError, match=r"does not exist.*\(Is a directory\)"):
        storage.read_bytes(str(tmp_path))


def test_delete_removes_and_does_not_mind_what_is_missing(tmp_path: Path):
    uri = str(tmp_path / "a")
    storage.write_bytes(uri, b"x")
    assert storage.exists(uri)
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)


def test_an_input_serves_pyarrow_and_a_local_file_is_its_own_copy(tmp_path: Path):
    table = pa.table({"a": [1, 2, 3]})
    pq.write_table(table, tmp_path / "t.parquet")
    with storage.open_input(str(tmp_path / "t.parquet")) as file:
        assert pq.read_table(file).equals(table)
    assert storage.node_file(str(tmp_path / "t.parquet")) == tmp_path / "t.parquet"


# ---------------------------------------------------------------- local writing


def test_a_write_replaces_and_leaves_nothing_else_behind(tmp_path: Path):
    uri = str(tmp_path / "new" / "folder" / "a")
    storage.write_bytes(uri, b"old")
    storage.write_bytes(uri, b"new")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "new" / "folder").iterdir()] == [
        ("a", b"new")
    ]


def test_written_files_have_the_permissions_of_ordinary_files(tmp_path: Path):
    storage.write_bytes(str(tmp_path / "ours"), b"x")
    (tmp_path / "plain").write_bytes(b"x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_is_created_once_and_keeps_its_first_content(tmp_path: Path):
    uri = str(tmp_path / "commits" / "0.json")
    assert storage.put_if_absent(uri, b"first")
    assert not storage.put_if_absent(uri, b"second")
    assert storage.read_bytes(uri) == b"first"
    assert list((tmp_path / "commits").iterdir()) == [tmp_path / "commits" / "0.json"]


@pytest.mark.parametrize("create", ["links", "no links"])
def test_of_racing_writers_exactly_one_creates_the_file(tmp_path: Path, create: str):
    start = threading.Barrier(8)

    def write(writer: int, name: str) -> bool:
        start.wait()
        if create == "links":
            return storage.put_if_absent(str(tmp_path / name), b"%d" % writer * 1000)
        return local.create_without_links(tmp_path / name, b"%d" % writer * 1000)

    with ThreadPoolExecutor(8) as pool:
        for round_ in range(20):
            won = list(pool.map(lambda writer, name=str(round_): write(writer, name), range(8)))
            assert won.count(True) == 1
            assert (tmp_path / str(round_)).read_bytes() == b"%d" % won.index(True) * 1000


def test_a_failed_write_without_links_takes_its_part_away(full_disk: Path):
    with pytest.raises(OSError, match="No space left"):
        local.create_without_links(full_disk / "record", bytes(2 << 20))
    assert not (full_disk / "record").exists()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs root; the limit on file sizes is tested instead")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("write", [storage.write_bytes, storage.put_if_absent])
def test_a_full_disk_fails_at_once_and_keeps_the_old_content(full_disk: Path, write, caplog):
    uri = str(full_disk / "weights")
    if write is storage.write_bytes:
        write(uri, b"old")
    with pytest.raises(StorageError, match=r"No space left on device.*Free space on that disk"):
        write(uri, bytes(2 << 20))
    assert [path.read_bytes() for path in full_disk.iterdir()] == [b"old"] * (write is storage.write_bytes)
    assert not caplog.records


def test_a_file_beyond_the_size_limit_fails_and_leaves_nothing(tmp_path: Path):
    code = """
import resource, sys
from pipelines import storage
from samtok.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    storage.write_bytes(sys.argv[1], bytes(8192))
except StorageError as error:
    print(error)
"""
    child = run_child(code, str(tmp_path / "a"))
    said, _ = child.communicate(timeout=60)
    assert "File too large" in said
    assert "ulimit -f" in said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_permission_is_told_with_the_remedy(tmp_path: Path):
    code = """
import os, sys
from pipelines import storage
from samtok.errors import StorageError
if os.geteuid() == 0:
    os.setuid(65534)  # root may write anywhere
try:
    storage.write_bytes(sys.argv[1], b"x")
except StorageError as error:
    print(error)
"""
    tmp_path.chmod(0o555)
    said, _ = run_child(code, str(tmp_path / "a")).communicate(timeout=60)
    assert "Permission denied" in said
    assert "Check the permissions of the file and its folders." in said


def test_a_write_where_no_folder_can_be_made_does_not_speak_of_a_missing_file():
    with pytest.raises(
        StorageError, match=r"Cannot write /proc/samtok/a: .*Check the path and the disk"
    ) as caught:
        storage.write_bytes("/proc/samtok/a", b"x")
    assert not isinstance(caught.value, storage.NotFoundError)


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path):
    storage.write_bytes(str(tmp_path / "run"), b"x")
    with pytest.raises(StorageError, match="A file stands where a folder is needed"):
        storage.write_bytes(str(tmp_path / "run" / "data" / "a"), b"x")


def test_a_writer_killed_in_the_middle_leaves_the_old_content(tmp_path: Path):
    code = "import sys; from pipelines import storage; storage.write_bytes(sys.argv[1], bytes(300 << 20))"
    storage.write_bytes(str(tmp_path / "weights"), b"old")
    child = run_child(code, str(tmp_path / "weights"))
    while not list(tmp_path.glob(".tmp-*")):  # until it has begun to write
        assert child.poll() is None, "the writer ended before it could be killed"
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert (tmp_path / "weights").read_bytes() == b"old"
    assert [file.uri for file in storage.list_files(str(tmp_path))] == [str(tmp_path / "weights")]


def test_a_reader_sees_the_old_content_or_the_new_and_nothing_between(tmp_path: Path):
    uri, size = str(tmp_path / "a"), 1 << 20
    storage.write_bytes(uri, b"0" * size)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [storage.write_bytes(uri, b"%d" % (n % 10) * size) for n in range(60)])
        while not writing.done():
            seen = storage.read_bytes(uri)
            assert len(seen) == size
            assert seen == seen[:1] * size
        writing.result()


def test_a_folder_that_can_be_used_passes_the_check_and_stays_clean(tmp_path: Path):
    storage.check(str(tmp_path / "run"))
    assert storage.list_files(str(tmp_path)) == []


# ---------------------------------------------------------------- faults of a store


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("fault", ["503", "slow", "reset"])
def test_a_fault_that_passes_is_waited_out(store: FaultyStore, fault: str):
    store.faults = [fault]
    storage.write_bytes("s3://b/k", b"content")
    store.faults = [fault]
    assert storage.read_bytes("s3://b/k") == b"content"
    store.faults = [fault]
    assert storage.exists("s3://b/k")
    store.faults = [fault]
    storage.delete("s3://b/k")
    assert store.objects == {}


def test_an_answer_that_breaks_off_is_read_again(store: FaultyStore):
    store.objects["/b/k"] = (bytes(range(256)) * 4096, "")
    store.faults = ["cut", "cut"]
    assert storage.read_bytes("s3://b/k") == store.objects["/b/k"][0]
    assert len(store.requests) == 3


def test_a_file_read_in_ranges_survives_broken_answers(store: FaultyStore):
    content = os.urandom(3 << 20)
    store.objects["/b/k"] = (content, "")
    with storage.open_input("s3://b/k") as file:
        store.faults = ["cut", "ok", "reset", "503"]
        assert file.read(100) == content[:100]
        file.seek(-100, io.SEEK_END)
        assert file.read() == content[-100:]
        file.seek(50)
        assert file.read() == content[50:]


def test_a_created_object_is_ours_although_the_answer_was_lost(store: FaultyStore):
    store.faults = ["lost"]
    assert storage.put_if_absent("s3://b/commit", b"record")
    assert [request.split()[0] for request in store.requests] == ["PUT", "PUT", "HEAD"]


def test_the_same_bytes_of_another_writer_are_not_ours_when_the_answer_was_lost(store: FaultyStore):
    assert storage.put_if_absent("s3://b/commit", b"record")
    store.faults = ["lost"]
    assert not storage.put_if_absent("s3://b/commit", b"record")


def test_a_fault_that_stays_fails_at_once(store: FaultyStore):
    store.faults = ["403"]
    with pytest.raises(StorageError, match=r"AccessDenied \(HTTP 403\).*Check AWS_ACCESS_KEY_ID") as caught:
        storage.read_bytes("s3://b/k")
    assert len(store.requests) == 1
    assert "secret-of-the-test" not in str(caught.value)


def test_a_missing_object_is_not_found_at_once(store: FaultyStore):
    with pytest.raises(storage.NotFoundError, match="Cannot read s3://b/k: it does not exist"):
        storage.read_bytes("s3://b/k")
    assert not storage.exists("s3://b/k")


def test_an_outage_is_told_once_by_many_threads_and_so_is_its_end(store: FaultyStore, caplog):
    caplog.set_level(logging.INFO, logger="pipelines.storage")
    store.objects["/b/k"] = (b"x", "")
    store.faults = ["503"] * 16
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(storage.read_bytes, ["s3://b/k"] * 8)) == [b"x"] * 8
    said = [record.levelname for record in caplog.records]
    assert said.count("WARNING") <= 3  # one, or one more for who fails again after another got through
    assert "s3://b does not answer (ServiceUnavailable (HTTP 503): planned)" in caplog.records[0].getMessage()
    assert "answers again" in caplog.records[-1].getMessage()


def test_retries_end_with_their_time_and_say_so(store: FaultyStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(env.STORAGE_RETRY_S, "0.3")
    store.faults = ["503"] * 100
    with pytest.raises(StorageError, match=r"after \d+ s of retries \(SAMTOK_STORAGE_RETRY_S\).*HTTP 503"):
        storage.read_bytes("s3://b/k")
    assert 2 <= len(store.requests) < 10


def test_no_retries_are_made_when_their_time_is_zero(store: FaultyStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(env.STORAGE_RETRY_S, "0")
    store.faults = ["503"]
    with pytest.raises(StorageError, match="HTTP 503"):
        storage.write_bytes("s3://b/k", b"x")
    assert len(store.requests) == 1


def test_a_store_that_ignores_exclusive_writes_does_not_pass_the_check(store: FaultyStore):
    store.ignores_conditions = True
    with pytest.raises(StorageError, match="does not create files exclusively"):
        storage.check("s3://b/run")
    assert store.objects == {}


def test_a_store_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, store: FaultyStore):
    monkeypatch.setenv(env.AWS_ENDPOINT_URL, "http://127.0.0.1:9")
    monkeypatch.setenv(env.STORAGE_RETRY_S, "0")
    with pytest.raises(StorageError, match=r"store http://127\.0\.0\.1:9 \(AWS_ENDPOINT_URL\) is up"):
        storage.read_bytes("s3://b/k")


def test_an_endpoint_without_scheme_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(env.AWS_ENDPOINT_URL, "localhost:9000")
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL must be http://HOST:PORT"):
        storage.read_bytes("s3://b/k")


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan"])
def test_a_retry_time_that_is_no_time_is_refused(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv(env.STORAGE_RETRY_S, text)
    with pytest.raises(ConfigError, match="SAMTOK_STORAGE_RETRY_S must be a number of seconds"):
        env.storage_retry_s()
