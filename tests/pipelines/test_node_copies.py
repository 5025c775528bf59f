"""Copies of a store's folders: fetched once for all processes of a machine, gone with the last of them."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines import storage
from pipelines.storage import node_copies
from pipelines.tokenizer_training import sources

PROCESS = """
import sys, time
from pathlib import Path
from pipelines.storage import node_copies

def fill(folder):
    with open(sys.argv[2], "a") as log:
        log.write("fetched\\n")
    time.sleep(float(sys.argv[3]))
    (folder / "file").write_text("whole")

place = node_copies.shared(sys.argv[1], fill)
print((place / "file").read_text(), (place / "file").stat().st_ino, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(node_copies, "_held", {})
    yield tmp_path
    node_copies._give_back()


def start(home: Path, key: str = "key", pause_s: float = 0.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROCESS, key, str(home / "log"), str(pause_s)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def copies(home: Path) -> list[str]:
    return sorted(path.name for path in home.glob("samtok-copies-*/*") if path.is_dir())


def test_processes_share_one_copy_and_the_last_one_deletes_it(home: Path):
    others = [start(home, pause_s=0.5) for _ in range(3)]
    (line,) = {said(process) for process in others}
    assert line.startswith("whole ") and (home / "log").read_text() == "fetched\n"
    for process in others:
        assert copies(home) == ["key"]
        process.communicate("")
    assert copies(home) == []


def test_what_a_killed_process_had_half_is_fetched_anew_and_what_it_had_whole_is_swept(home: Path):
    half = start(home, pause_s=60)
    log = home / "log"
    while not (log.exists() and log.read_text()):
        assert half.poll() is None
    half.kill()
    half.communicate()
    assert copies(home) == ["key.half"]
    whole = start(home)
    assert said(whole).startswith("whole ") and copies(home) == ["key"]
    whole.kill()
    whole.communicate()
    assert copies(home) == ["key"]
    other = start(home, key="other")
    assert said(other).startswith("whole ") and copies(home) == ["other"]
    other.communicate("")
    assert log.read_text() == 3 * "fetched\n"


def test_a_fetch_that_fails_leaves_nothing_and_the_next_one_works(home: Path):
    def fail(folder: Path) -> None:
        (folder / "file").write_text("half")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        node_copies.shared("key", fail)
    assert copies(home) == []
    place = node_copies.shared("key", lambda folder: (folder / "file").touch())
    assert node_copies.shared("key", fail) == place and copies(home) == ["key"]


@pytest.mark.slow
def test_a_folder_of_a_store_is_fetched_once_until_it_changes(bucket: str):
    uri = f"{bucket}/model"
    for name in ("config.json", "deep/a.safetensors", "other.pt"):
        storage.write_bytes(f"{uri}/{name}", b"1")
    first = storage.node_folder(uri)
    assert {path.name for path in first.rglob("*") if path.is_file()} == {"config.json", "a.safetensors"}
    assert storage.node_folder(uri) == first
    storage.write_bytes(f"{uri}/config.json", b"22")
    second = storage.node_folder(uri)
    assert second != first and (second / "config.json").read_bytes() == b"22"


@pytest.mark.slow
def test_an_index_of_a_store_is_mapped_from_the_one_copy_of_a_machine(bucket: str):
    uri, sink = f"{bucket}/index/00-x.arrow", pa.BufferOutputStream()
    table = pa.table({"key": ["a", "b"], "payload": ["1", "2"]})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())
    assert sources._mapped(uri).equals(table)
    assert str(storage.node_file(uri)) in Path("/proc/self/maps").read_text()
