"""Files of JSON lines that other people wrote: what is none is refused, and a bad line costs itself alone."""

import codecs
import io
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.compose_dialogues import main as compose
from pipelines import shards, storage
from pipelines.cold_start.replies import of_file
from pipelines.ingestion import json_lines
from pipelines.ingestion.json_lines import MAX_LINE_BYTES, parse_line, read_lines
from pipelines.tools.reward_check import main as check
from pipelines.tools.reward_check import responses_of
from samtok import folders
from samtok.errors import CheckpointError, ConfigError, DataError
from samtok.mllm.folder import read_folder
from tests.jobs import read_manifest

CHAT = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes."}]}
GOOD = json.dumps(CHAT).encode()
DEEP = 100_000
BAD: dict[str, bytes] = {
    "nested lists": b'{"messages": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "nested objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "nested less": GOOD[:-1] + b', "id": ' + b"[" * 500 + b"]" * 500 + b"}",
    "a role that is deep": json.dumps({"messages": [{"role": [[[[{}]]]], "content": "x"}]}).encode(),
    "latin-1": '{"messages": "é"}'.encode("latin-1"),
    "cut character": GOOD[:-3] + "é".encode()[:1],
    "nul": GOOD[:20] + b"\0" + GOOD[20:],
    "nuls": b"\0" * 30,
    "UTF-16": json.dumps(CHAT).encode("utf-16-le"),
    "half a character": GOOD.replace(b"Hi", b"\\ud800"),
    "half a character in a name": GOOD.replace(b"Hi", b"<image>Hi")[:-1] + b', "images": ["\\ud800.png"]}',
    "a long number": b'{"messages": ' + b"1" * 5000 + b"}",
    "cut": GOOD[:-5],
    "two": GOOD + GOOD,
    "a text": b'"x"',
    "nothing": b"null",
    "not a number": b"NaN",
}
LIKE_GOOD = {"a mark": codecs.BOM_UTF8 + GOOD, "a return": GOOD + b"\r", "spaces": b"  " + GOOD}


def imported(folder: Path, data: bytes, *flags: str) -> tuple[int, dict[str, int], list[str]]:
    """Imports a file of chats; returns the exit code, the totals and the reasons of rejects."""
    (source := folder / "chats.jsonl").write_bytes(data)
    out = folder / "out"
    end = ("--out", str(out), "--tracking", "off", "--report-samples", "0", "--max-reject-rate", "1")
    code = compose(["--chats.source", str(source), *end, *flags])
    if not (out / shards.MANIFEST).exists():
        return code, {}, []
    manifest = read_manifest(out)
    found = [reason for shard in manifest["shards"] for reason in shard["reject_reasons"]]
    return code, manifest["totals"], found


def test_every_bad_line_is_a_reject_and_the_others_are_chats(tmp_path):
    lines = [GOOD, *BAD.values(), b"", b"  ", *LIKE_GOOD.values(), GOOD]
    code, totals, reasons = imported(tmp_path, codecs.BOM_UTF8 + b"\n".join(lines))
    assert code == 0
    assert (totals["items_in"], totals["samples_out"]) == (len(BAD) + 5, 5)
    assert totals["items_rejected"] == len(BAD)
    assert set(reasons) == {
        f"compose/{reason}" for reason in ("json", "record", "role", "text_encoding", "image_path")
    }


LISTED = {name: data for name, data in BAD.items() if name in ("latin-1", "half a character", "not a number")}
"""Bad lines that are entries of a list too: their brackets and quotes are right."""


@pytest.mark.parametrize("piece_bytes", [7, 2**20])
def test_a_list_is_read_like_lines(tmp_path, monkeypatch, piece_bytes):
    monkeypatch.setattr(json_lines, "_HEAD_BYTES", piece_bytes)
    tricky = json.dumps({"messages": [{"role": "user", "content": 'a ] " \\ } , [ {'}, CHAT["messages"][1]]})
    entries = [GOOD, *LISTED.values(), b" ", b"3", tricky.encode(), b" \n" + GOOD + b"\t"]
    data = codecs.BOM_UTF8 + b" [\n" + b",".join(entries) + b"\n] \n"
    if piece_bytes == 7:  # the head must be seen whole to know the kind of file
        lines = list(json_lines._entries(io.BytesIO(data)))
    else:
        (tmp_path / "list.json").write_bytes(data)
        lines = list(read_lines(str(tmp_path / "list.json"), flag="--x"))
    assert [line.raw for line in lines] == [entry.strip() or b"," for entry in entries]
    assert [line.number for line in lines] == list(range(1, len(entries) + 1))
    for line in lines:
        assert data[line.offset : line.offset + line.size].strip() == line.raw.strip(b",")
    code, totals, reasons = imported(tmp_path, b"[" + b",".join(entries * 20) + b"]", "--shard-rows", "64")
    assert (code, totals["items_in"], totals["samples_out"]) == (0, 20 * len(entries), 60)
    assert set(reasons) == {"compose/json", "compose/record", "compose/text_encoding"}
    assert len(read_manifest(tmp_path / "out")["shards"]) > 1


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (json.dumps([CHAT, CHAT]).encode()[:-1], "does not end"),
        (b"[" + GOOD + b', "]', "does not end"),
        (b"[" + GOOD + b"]\n" + GOOD, "with something behind its end"),
    ],
)
def test_a_list_that_is_not_all_of_its_file_is_refused(tmp_path, data, fault):
    (tmp_path / "list.json").write_bytes(data)
    with pytest.raises(ConfigError, match=f"--x .* is a JSON list .*{fault}.*Fetch it again"):
        list(read_lines(str(tmp_path / "list.json"), flag="--x"))
    assert imported(tmp_path, data)[0] == 2


def test_an_entry_that_is_too_long_costs_itself_alone(tmp_path):
    data = b"[" + GOOD + b', "' + b"x" * (MAX_LINE_BYTES + 9) + b'", ' + GOOD + b"]"
    code, totals, reasons = imported(tmp_path, data)
    assert (code, totals["samples_out"], reasons) == (0, 2, ["compose/line_too_long"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(values=st.lists(JSON, max_size=8), indent=st.none() | st.integers(0, 3), piece=st.integers(1, 40))
def test_any_list_is_cut_into_its_entries(values, indent, piece):
    data = json.dumps(values, indent=indent, ensure_ascii=False).encode()

    class Pieces(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, piece))

    found = [json.loads(line.raw) for line in json_lines._entries(Pieces(data))]
    assert found == values


@pytest.mark.slow
@pytest.mark.numerics
@settings(max_examples=15, deadline=None)
@given(
    lines=st.lists(
        st.sampled_from([GOOD, b"", *LIKE_GOOD.values(), *BAD.values()]) | st.binary(max_size=30), max_size=6
    ),
    end=st.sampled_from([b"", b"\n", b"\r\n"]),
)
def test_any_mix_of_lines_ends_with_a_code_and_everything_accounted_for(lines, end):
    with tempfile.TemporaryDirectory() as folder:
        code, totals, _ = imported(Path(folder), b"\n".join(lines) + end)
    assert code in (0, 2, 3)
    if totals:
        assert totals["items_in"] == totals["samples_out"] + totals["items_rejected"]


OTHER_FILES = {
    "UTF-16 with a mark": (json.dumps(CHAT) + "\n").encode("utf-16"),
    "UTF-16": (json.dumps(CHAT) + "\n").encode("utf-16-be"),
    "pretty": json.dumps(CHAT, indent=2).encode(),
    "pretty, one after the other": b"\n".join([json.dumps(CHAT, indent=1).encode()] * 3),
    "half pretty": GOOD.replace(b'{"role": "user"', b'\n{"role": "user"'),
}
WORDS = {
    "UTF-16 with a mark": "no UTF-8",
    "UTF-16": "no UTF-8",
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_a_file_of_another_kind_is_refused_by_every_reader_with_the_way_out(tmp_path, kind, capsys):
    (path := tmp_path / "file").write_bytes(OTHER_FILES[kind])
    expected = WORDS.get(kind, "objects of several lines each")
    readers = {
        "--teacher.replies": lambda: list(of_file(str(path))),
        "--responses": lambda: list(responses_of(str(path))),
    }
    for flag, read in readers.items():
        with pytest.raises(ConfigError, match=rf"{flag} .*{expected}.*FILE > NEW"):
            read()
    assert check(["--responses", str(path)]) == 2
    assert imported(tmp_path, OTHER_FILES[kind])[0] == 2
    assert f"--chats.source {tmp_path / 'chats.jsonl'} " in capsys.readouterr().err


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_is_a_reject_of_cold_start_and_an_error_of_reward_check(tmp_path, kind):
    (path := tmp_path / "file").write_bytes(b'{"sample_id": "a", "reply": "b"}\n' + BAD[kind] + b"\n")
    first, second = of_file(str(path))
    assert (first.reply, first.reason) == ("b", None) and second.reason in ("json", "record")
    assert second.sample_id == "line-00000002" and second.message.startswith("line 2")
    with pytest.raises(DataError, match="line 2"):
        list(responses_of(str(path)))


def test_a_line_that_is_too_long_is_never_held_and_costs_itself_alone(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=f"over {MAX_LINE_BYTES} bytes") as caught:
        parse_line(b" " * (MAX_LINE_BYTES + 1), "line 1")
    assert caught.value.reason == "line_too_long"
    with (tmp_path / "chats.jsonl").open("wb") as file:
        file.write(GOOD + b"\n" + b'"')
        file.seek(3 * MAX_LINE_BYTES, 1)  # a hole, which costs no disk
        file.write(b'"\n' + GOOD)
    lines = list(read_lines(str(tmp_path / "chats.jsonl"), flag="--x"))
    assert [line.number for line in lines] == [1, 2, 3] and len(lines[1].raw) == MAX_LINE_BYTES + 1
    assert lines[2].offset == lines[1].offset + lines[1].size and lines[2].raw == GOOD
    code, totals, reasons = imported(tmp_path, (tmp_path / "chats.jsonl").read_bytes())
    assert (code, totals["samples_out"], reasons) == (0, 2, ["compose/line_too_long"])


TEXTS = {"deep": b"[" * DEEP, "latin-1": "é".encode("latin-1"), "a long number": b"1" * 5000, "nul": b"\0{}"}


@pytest.mark.parametrize("text", TEXTS)
def test_json_files_of_any_bytes_are_errors_of_ours(tmp_path, text, capsys):
    (tmp_path / "config.json").write_bytes(TEXTS[text])
    uri = str(tmp_path / "config.json")
    with pytest.raises(DataError, match="must be a JSON document"):
        storage.read_json(uri)
    for read in (folders.read_config, read_folder):
        with pytest.raises(CheckpointError, match="not JSON"):
            read(str(tmp_path))
    with pytest.raises(SystemExit) as end:
        compose(["--config", uri])
    assert end.value.code == 2 and "cannot be used" in capsys.readouterr().err
