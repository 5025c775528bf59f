"""A folder of a model takes the place of an earlier one: as a whole, whenever its writer is killed."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.storage import local
from samtok import folders
from samtok.errors import StorageError
from tests.jobs import ROOT

WRITER = """
import sys, tempfile
from pathlib import Path
from pipelines import storage

uri, number = sys.argv[1], int(sys.argv[2])
while True:
    number += 1
    with tempfile.TemporaryDirectory() as name:
        for file in ("a.json", "b.safetensors", "deep/c.json", f"only-{number}"):
            (Path(name) / file).parent.mkdir(exist_ok=True)
            (Path(name) / file).write_text(str(number))
        storage.replace_folder(Path(name), uri)
    print(number, flush=True)
"""


@contextmanager
def writer(uri: str, number: int = 0) -> Iterator[list[int]]:
    """Exchanges a folder all the time, from a version on, and is killed at the end of the block.

    The list gets the first version that it wrote, and at the end all others that it knows to be in place.
    """
    command = [sys.executable, "-c", WRITER, uri, str(number)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [int(process.stdout.readline())]
        try:
            yield said
        finally:
            process.kill()
            said += map(int, process.communicate()[0].split())


def version_of(uri: str) -> int:
    """Reads a folder as any reader does; fails if it is of two versions, or a part of one."""
    place = folders.resolve(uri, read=storage.read_bytes)
    with storage.local_folder(place) as folder:
        paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        versions = {path.read_text() for name, path in paths.items() if name != folders.COMPLETE}
    assert len(versions) == 1, paths
    (version,) = versions
    names = {"a.json", "b.safetensors", "deep/c.json", f"only-{version}"}
    assert set(paths) - {folders.COMPLETE} == names
    return int(version)


KILLED = """
import itertools, os, signal, sys, tempfile
from pathlib import Path
from pipelines import storage

place = Path(sys.argv[1])

def replace(number):
    with tempfile.TemporaryDirectory() as name:
        for file in ("a.json", "b.safetensors", "deep/c.json", f"only-{number}"):
            (Path(name) / file).parent.mkdir(exist_ok=True)
            (Path(name) / file).write_text(str(number))
        storage.replace_folder(Path(name), str(place))

def kill_at(point):
    events = itertools.count()
    def hook(event, args):
        if event.startswith(("open", "os.", "shutil.", "ctypes.")) and next(events) == point:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

version, points = 0, 0
replace(version)
for point in itertools.count():
    child = os.fork()
    if not child:
        kill_at(point)
        replace(version + 1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    paths = [path for path in place.rglob("*") if path.is_file()]
    files = {path.relative_to(place).as_posix(): path.read_text() for path in paths}
    (found,) = set(files.values())
    assert set(files) == {"a.json", "b.safetensors", "deep/c.json", f"only-{found}"}, (point, files)
    assert int(found) in (version, version + 1), (point, files)
    points += int(found) == version
    version = int(found)
    if not status:
        print(point, points)
        break
"""


def test_a_folder_is_old_or_new_whenever_its_writer_is_killed(tmp_path: Path):
    """At every call to the system that Python tells of."""
    command = [sys.executable, "-c", KILLED, str(tmp_path / "best")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-3000:]
    killed, still_old = map(int, done.stdout.split())
    assert killed > 50 and 0 < still_old < killed


def test_a_reader_finds_a_folder_at_any_moment(tmp_path: Path):
    uri = str(tmp_path / "best")
    with writer(uri):
        for _ in range(2000):
            assert (tmp_path / "best" / "a.json").read_text()


def replace(uri: str, tmp_path: Path, version: int) -> None:
    folder = tmp_path / f"version-{version}"
    for name in ("a.json", "b.safetensors", "deep/c.json", f"only-{version}"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(str(version))
    storage.replace_folder(folder, uri)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_nothing_of_the_old_folder_or_of_a_killed_writer_is_left(tmp_path: Path, scheme: str):
    uri = f"{scheme}{tmp_path}/run/best/"
    storage.write_bytes(f"{tmp_path}/run/best.new/half", b"of a killed writer")
    for version in (1, 2):
        replace(uri, tmp_path, version)
        assert version_of(uri) == version
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["best"]


def test_folders_take_turns_where_the_system_cannot_swap_them(tmp_path: Path):
    for name in ("best", "best.new"):
        storage.write_bytes(str(tmp_path / name / "a"), name.encode())
    local.exchange_by_turns(tmp_path / "best.new", tmp_path / "best")
    assert {path.name: (path / "a").read_text() for path in tmp_path.iterdir()} == {
        "best": "best.new",
        "best.new": "best",
    }


# ---------------------------------------------------------------- on S3


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_object_store_reads_old_or_new_whenever_the_writer_is_killed(bucket: str, tmp_path: Path):
    uri, version = f"{bucket}/run/best", 0
    for _ in range(8):
        with writer(uri, version) as said:
            time.sleep(random.uniform(0, 0.5))
        version = version_of(uri)
        assert version in (said[-1], said[-1] + 1)
    replace(uri, tmp_path, version + 1)
    assert version_of(uri) == version + 1
    assert {file.uri.split("/")[4] for file in storage.list_files(f"{bucket}/run")} == {"best"}


@pytest.mark.slow
def test_what_is_complete_beside_its_place_on_s3_is_read_there_and_moves_in(bucket: str, tmp_path: Path):
    uri = f"{bucket}/run/best"
    replace(uri, tmp_path, 1)
    for name in ("a.json", "b.safetensors", "deep/c.json", "only-2"):
        storage.write_bytes(f"{uri}.new/{name}", b"2")
        assert version_of(uri) == 1
    storage.write_bytes(f"{uri}.new/{folders.COMPLETE}", b"")
    storage.write_bytes(f"{uri}/a.json", b"2")  # and killed
    assert version_of(uri) == 2
    with (
        pytest.raises(StorageError, match=f"{uri} was replaced while it was read"),
        storage.local_folder(uri),
    ):
        pass
    storage.write_bytes(f"{tmp_path}/empty/other", b"3")
    storage.replace_folder(tmp_path / "empty", uri)
    assert [file.uri for file in storage.list_files(f"{bucket}/run")] == [f"{uri}/other"]
