"""The record of a judge survives kills, refuses other files, and is written by one run at a time."""

import json
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.judging import record as module
from pipelines.judging.record import Judgement, Record
from samtok.errors import ConfigError, DataError, StorageError
from tests.readers import ANY

texts = st.text(max_size=20) | st.sampled_from(["\ud800", "\u2028\u2029\r\n", "\0", '{"key": "'])
outcomes = st.builds(
    Judgement,
    reply=texts,
    finish=st.none() | st.just("stop"),
    seconds=st.just(0.25),
    tokens=st.none() | st.just({"prompt": 3, "completion": 4}),
) | st.builds(Judgement, failed=st.just("refused"), message=texts)


def written(path: Path, outcomes: list[Judgement]) -> None:
    path.unlink(missing_ok=True)
    record = Record(str(path), writes=True)
    for number, outcome in enumerate(outcomes):
        record.add(f"k{number}", {"name": f"s{number}", "judge": "j"}, outcome)
    record.close()


def known(path: Path) -> dict[str, Judgement]:
    return Record(str(path), writes=False).known


@ANY
@given(st.lists(outcomes, min_size=1, max_size=3), st.data())
def test_a_record_that_is_cut_anywhere_has_all_whole_lines_and_goes_on(tmp_path, found, data):
    path = tmp_path / "r.jsonl"
    written(path, found)
    whole = path.read_bytes()
    at = data.draw(st.just(len(whole)) | st.integers(0, len(whole)))
    path.write_bytes(whole[:at])
    kept = whole[: at + 1].count(b"\n")  # a line that lacks nothing but its end counts
    expected = {f"k{number}": one for number, one in enumerate(found[:kept])}
    assert known(path) == expected
    record = Record(str(path), writes=True)
    assert record.known == expected
    record.add("new", {"name": "s", "judge": "j"}, Judgement(reply="x"))
    record.close()
    assert known(path) == expected | {"new": Judgement(reply="x")}
    assert all(json.loads(line) for line in path.read_bytes().splitlines())


def test_the_last_line_of_a_key_counts(tmp_path):
    path = tmp_path / "r.jsonl"
    record = Record(str(path), writes=True)
    for outcome in (Judgement(failed="server", message="m"), Judgement(reply="x")):
        record.add("k", {"name": "s", "judge": "j"}, outcome)
    record.close()
    assert known(path) == {"k": Judgement(reply="x")} and Record(str(path), writes=False).judges == {"j"}


GOOD = b'{"key": "k", "judge": "j", "reply": "x"}\n'
OTHERS = {
    "a config": b'{"out": "runs/x"}',
    "a list": b"[1, 2]",
    "half of something else": b'{"out": "ru',
    "no JSON in the middle": b"%s{" + GOOD,
    "half a line in the middle": GOOD[:-10] + b"\n" + GOOD,
    "no outcome": b'{"key": "k", "judge": "j"}\n',
    "two outcomes": b'{"key": "k", "judge": "j", "reply": "x", "failed": "y"}\n',
    "a number for a key": b'{"key": 1, "judge": "j", "reply": "x"}\n',
    "tokens that are none": b'{"key": "k", "judge": "j", "reply": "x", "tokens": {"prompt": "3"}}\n',
    "seconds that are none": b'{"key": "k", "judge": "j", "reply": "x", "seconds": "3"}\n',
    "a whole object of another kind at the end": GOOD + b'{"key": "k"}',
}


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("other", OTHERS)
def test_other_files_are_refused_and_stay_as_they_are(other: str, writes: bool, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(OTHERS[other])
    with pytest.raises(DataError, match=r"r\.jsonl: line \d") as caught:
        Record(str(path), writes=writes)
    assert caught.value.reason in ("judgement", "json")
    assert path.read_bytes() == OTHERS[other]
    path.write_bytes(b"")
    Record(str(path), writes=True).close()  # the refused one holds no lock


def test_a_file_that_is_in_use_is_refused(tmp_path):
    path = str(tmp_path / "sub" / "r.jsonl")
    record = Record(path, writes=True)
    with pytest.raises(ConfigError, match="--record .* is written by another run"):
        Record(path, writes=True)
    assert Record(path, writes=False).known == {}
    record.close()
    Record(path, writes=True).close()


def test_a_disk_that_is_full_is_a_fault_of_the_store(tmp_path):
    path, outcome = tmp_path / "r.jsonl", Judgement(reply="x" * 50)
    record, limits = Record(str(path), writes=True), resource.getrlimit(resource.RLIMIT_FSIZE)
    record.add("k0", {"name": "s", "judge": "j"}, outcome)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(StorageError, match="Cannot write .* What was judged before is in it"):
            record.add("k1", {"name": "s", "judge": "j"}, outcome)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    record.close()
    assert not path.read_bytes().endswith(b"\n") and known(path) == {"k0": outcome}
    Record(str(path), writes=True).close()
    assert path.read_bytes().endswith(b"\n")


@pytest.mark.slow
@pytest.mark.faults
def test_an_object_of_a_store_is_written_whole_now_and_then(bucket: str, monkeypatch):
    monkeypatch.setattr(module, "FLUSH_EVERY", 2)
    uri = f"{bucket}/run/judgements.jsonl"
    record = Record(uri, writes=True)
    for number in range(3):
        record.add(f"k{number}", {"name": "s", "judge": "j"}, Judgement(reply=str(number)))
    assert set(Record(uri, writes=False).known) == {"k0", "k1"}
    record.close()
    again = Record(uri, writes=True)
    assert {key: one.reply for key, one in again.known.items()} == {"k0": "0", "k1": "1", "k2": "2"}
    again.add("k3", {"name": "s", "judge": "j"}, Judgement(failed="refused", message="m"))
    again.close()
    assert set(Record(uri, writes=False).known) == {"k0", "k1", "k2", "k3"}
