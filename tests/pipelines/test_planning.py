"""Listing and planning corpora: by parts, in any memory, killed at any time, and looked at again."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import schema, shards, storage
from pipelines.ingestion import archives, external_sort, json_stream
from pipelines.ingestion.corpora import CorpusConfig
from pipelines.ingestion.external_sort import ExternalSort
from pipelines.ingestion.reader import Input
from pipelines.ingestion.records import parse_json
from pipelines.ingestion.sidecar import Sa1bReader
from pipelines.planning import listing, plans
from pipelines.tokenization.config import TokenizeCorpusConfig
from pipelines.tokenization.prepare import prepare
from samtok.errors import ConfigError, DataError, StorageError
from tests.pipelines.test_reader_coco import reader_of as coco_reader
from tests.pipelines.test_reader_sa1b import pairs, reader_of, write_folder, write_tar
from tests.s3_server import LISTING_PAGE

SETTINGS = {"kind": "chat", "seed": 0}


def here(work, todo: Sequence[int]) -> Iterator[int]:
    return map(work, todo)


def plan_of(out: Path, reader: Sa1bReader, workers=here) -> shards.Plan:
    index = str(out / "index" / "0")
    inputs = lambda: listing.inputs_of(reader, index, workers)  # noqa: E731
    return plans.open_plan(str(out), SETTINGS, inputs, shard_rows=2, witness=reader.witness)


def planned(plan: shards.Plan) -> list[Input]:
    chunks = [chunk for shard in range(len(plan.shard_rows)) for chunk in plan.chunks(shard)]
    return [item for chunk in chunks for item in shards.read_inputs(plan, chunk)]


# ---------------------------------------------------------------- sorting


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.text(max_size=3), st.integers(0, 3)), max_size=60), run=st.integers(1, 20))
def test_rows_are_sorted_whatever_fits_into_a_run(monkeypatch, rows, run):
    monkeypatch.setattr(external_sort, "RUN_ROWS", run)
    monkeypatch.setattr(external_sort, "BATCH_ROWS", 3)
    with ExternalSort[tuple[str, int]]() as taken:
        for row in rows:
            taken.add(row, len(row[0]))
        assert list(taken) == sorted(rows)


def test_a_disk_that_cannot_take_runs_is_named(monkeypatch):
    monkeypatch.setattr(external_sort, "RUN_CHARS", 1)
    monkeypatch.setattr(external_sort.tempfile, "tempdir", "/proc")  # where no file can be made
    with ExternalSort[tuple[str]]() as taken, pytest.raises(StorageError, match=r"/proc: .*TMPDIR"):
        taken.add(("a",), 1)


# ---------------------------------------------------------------- JSON in pieces

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


def streamed(path: Path) -> object:
    with path.open("rb") as stream:
        members = json_stream.members_of(stream, str(path))
        if isinstance(members, str):
            return members
        found = {}
        for member in members:
            entries = [member.entry] if member.entry else list(member.entries or ())
            for entry in entries:
                raw = path.read_bytes()[entry.offset : entry.offset + entry.size_bytes]
                assert json.loads(raw) == entry.value and raw == raw.strip()
            values = [entry.value for entry in entries]
            found[member.key] = values[0] if member.entry else values
        return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    value=st.dictionaries(st.text(max_size=3), VALUES, max_size=4),
    piece=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
)
def test_an_object_read_in_pieces_is_the_same(tmp_path, monkeypatch, value, piece, indent, ascii_only):
    monkeypatch.setattr(json_stream, "PIECE_BYTES", piece)
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode(errors="replace"))
    assert streamed(path) == json.loads(path.read_bytes())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), piece=st.integers(1, 40))
def test_a_damaged_object_is_refused_wherever_a_whole_read_refuses_it(tmp_path, monkeypatch, data, piece):
    monkeypatch.setattr(json_stream, "PIECE_BYTES", piece)
    raw = bytearray(
        '{"images": [{"id": 1, "ä": [1.5, -2e3]}, true], "info": {"a": "b\\n"}, "c": []}'.encode()
    )
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.json"
    path.write_bytes(raw)
    try:
        expected = parse_json(bytes(raw), str(path))
    except DataError as fault:
        if raw[:1] != b"{":  # of what is no object only the beginning is looked at
            return
        with pytest.raises(DataError) as refused:
            streamed(path)
        assert refused.value.reason == fault.reason == "json"
    else:
        assert streamed(path) == (expected if isinstance(expected, dict) else type(expected).__name__)


def test_a_coco_file_is_listed_the_same_in_little_memory(tmp_path, monkeypatch):
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 6, "width": 8} for n in (3, 20, 100)]
    marks = [{"id": n, "image_id": (3, 20, 100, 7)[n % 4], "bbox": [0, 0, 2, 2]} for n in range(40)]
    reader = coco_reader(tmp_path, marks, images=images)
    whole = list(reader.inputs())
    monkeypatch.setattr(external_sort, "RUN_CHARS", 100)
    monkeypatch.setattr(json_stream, "PIECE_BYTES", 16)
    assert list(reader.inputs()) == whole
    assert [item.key for item in whole if isinstance(item, Input)] == ["100", "20", "3"]


def test_a_list_that_comes_twice_is_refused(tmp_path):
    reader = coco_reader(tmp_path, [])
    Path(reader.source).write_text('{"images": [], "annotations": [], "images": []}')
    with pytest.raises(DataError, match='"images" twice'):
        list(reader.inputs())


# ---------------------------------------------------------------- archives


def write_index(tar: Path, samples: list[list[tuple[str, int, int, str]]], version="v1.2") -> None:
    lines = [" ".join(" ".join(map(str, part)) for part in sample) for sample in samples]
    tar.with_suffix(".idx").write_text("\n".join([f"{version} {len(lines)}", *lines, ""]))


def test_the_index_beside_an_archive_is_read_instead_of_its_headers(tmp_path, monkeypatch):
    tar = write_tar(tmp_path / "sa.tar", pairs("sa_1", "sa_2"))
    members = list(archives.list_members(str(tar), (".jpg", ".json")))
    named = [
        (member.name.partition(".")[2], member.offset, member.size_bytes, member.name) for member in members
    ]
    write_index(tar, [named[:2], named[2:]])
    before = list(reader_of(tmp_path).inputs())
    monkeypatch.setattr(archives, "_from_headers", None)
    assert list(archives.list_members(str(tar), (".jpg", ".json"))) == members
    assert list(reader_of(tmp_path).inputs()) == before and len(before) == 2


@pytest.mark.parametrize("fault", ["version", "count", "offset", "end", "size", "words"])
def test_an_index_that_does_not_fit_its_archive_is_left_alone(tmp_path, fault, lines):
    tar = write_tar(tmp_path / "sa.tar", pairs("sa_1", "sa_2"))
    members = list(archives.list_members(str(tar), (".jpg", ".json")))
    named = [
        (member.name.partition(".")[2], member.offset, member.size_bytes, member.name) for member in members
    ]
    if fault == "offset":
        named[0] = (*named[0][:1], named[0][1] + 512, *named[0][2:])
    if fault == "end":
        named = named[:-1]
    if fault == "size":
        named[0] = (*named[0][:2], 7, named[0][3])
    write_index(tar, [named], version="v9" if fault == "version" else "v1.2")
    text = tar.with_suffix(".idx").read_text()
    if fault in ("count", "words"):
        text = (
            text.replace("v1.2 1", "v1.2 2") if fault == "count" else text.replace("sa_2.json", "sa 2.json")
        )
        tar.with_suffix(".idx").write_text(text)
    assert list(archives.list_members(str(tar), (".jpg", ".json"))) == members
    assert "sa.idx does not fit its archive" in lines[-1]


# ---------------------------------------------------------------- parts


def many(folder: Path) -> Path:
    files = {}
    for number in range(6):
        files |= pairs(*(f"sa_{number}{n}" for n in range(3)), folder=f"{number}/")
    return write_folder(folder, {**files, **pairs("sa_00", folder="5/")})


def test_parts_together_give_what_the_whole_gives(tmp_path):
    reader = reader_of(many(tmp_path / "data"))
    assert list(reader.parts()) == [f"{number}/" for number in range(6)]
    found = list(listing.inputs_of(reader, str(tmp_path / "index"), here))
    whole = list(reader.inputs())
    assert sorted(map(str, found)) == sorted(map(str, whole)) and len(whole) == 19
    keys = [item.key for item in found if isinstance(item, Input)]
    assert keys == sorted(keys) and len(set(keys)) == 18
    (reject,) = [item for item in found if not isinstance(item, Input)]
    assert (reject["reason"], reject["row_id"]) == ("duplicate_image_id", "sa_00")
    assert "5/sa_00 is a further image" in reject["message"]


def test_a_corpus_of_one_part_is_listed_as_it_is(tmp_path):
    files = {**pairs("sa_1", "sa_2", folder="b/"), **pairs("sa_1"), **pairs("sa_3", folder="a/")}
    reader = reader_of(write_folder(tmp_path / "data", files))
    found = list(listing.inputs_of(reader, str(tmp_path / "index"), here))
    assert len(reader.parts()) == 1 and sorted(map(str, found)) == sorted(map(str, reader.inputs()))
    assert [(one["reason"], one["row_id"]) for one in found if isinstance(one, dict)] == [
        ("duplicate_image_id", "sa_1")
    ]
    assert not (tmp_path / "index").exists()


def test_a_listing_that_was_killed_goes_on_with_the_parts_that_are_left(tmp_path):
    reader, done = reader_of(many(tmp_path / "data")), []

    def dies(work, todo: Sequence[int]) -> Iterator[int]:
        for number in todo[:4]:
            yield work(number)
        storage.write_bytes(str(tmp_path / "out/index/0/part-00004.parquet"), b"half")  # but not its proof
        raise KeyboardInterrupt

    def counts(work, todo: Sequence[int]) -> Iterator[int]:
        done.extend(todo)
        return map(work, todo)

    with pytest.raises(KeyboardInterrupt):
        plan_of(tmp_path / "out", reader, dies)
    assert shards.load_plan(str(tmp_path / "out")) is None
    killed = plan_of(tmp_path / "out", reader, counts)
    whole = plan_of(tmp_path / "whole", reader)
    assert done == [4, 5]
    assert planned(killed) == planned(whole) and replace(killed, out="") == replace(whole, out="")


def test_workers_see_the_parts_that_the_first_call_found(tmp_path):
    reader = reader_of(many(tmp_path / "data"))

    def adds(work, todo: Sequence[int]) -> Iterator[int]:
        write_folder(tmp_path / "data", pairs("sa_9", folder="new/"))
        return map(work, todo)

    assert plan_of(tmp_path / "out", reader, adds).num_inputs == 18


def test_what_was_listed_of_a_corpus_that_was_refused_is_forgotten(tmp_path):
    """Its user mends the corpus, and the same command must see it; a kill leaves what was listed."""
    corpus = CorpusConfig(reader="sa1b", source=str(many(tmp_path / "data")))
    config = TokenizeCorpusConfig(corpus=corpus, out=str(tmp_path / "out"), tokenizer="tiny", workers=0)
    tokenization = prepare(config)

    def ends(error: type[BaseException]):
        def workers(work, todo: Sequence[int]) -> Iterator[int]:
            yield work(todo[0])
            raise error("at the second part")

        return workers

    for error, left in ((KeyboardInterrupt, 1), (DataError, 0)):
        with pytest.raises(error, match="second part"):
            tokenization.plan(ends(error))
        assert len(list((tmp_path / "out").glob("index/*/part-*.json"))) == left


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_store_lists_the_same_images_and_rejects_as_a_disk(tmp_path, bucket):
    files = {f"{number}/{name}": data for number in range(3) for name, data in pairs(f"sa_{number}").items()}
    files |= {"0/sa_7.jpg": b"alone", "1/sa_8.json": b"alone", "notes.txt": b"", **pairs("sa_0", folder="2/")}
    files |= {f"3/a_{number}.jpg": b"alone" for number in range(LISTING_PAGE)}
    found = []
    for root in (str(tmp_path / "data"), f"{bucket}/data"):
        for name, data in files.items():
            storage.write_bytes(f"{root}/{name}", data)
        reader = reader_of(root)
        found.append(
            [str(item).replace(root, "") for item in listing.inputs_of(reader, f"{root}-index", here)]
        )
    assert sorted(found[0]) == sorted(found[1]) and len(found[0]) == 3 + 3 + LISTING_PAGE


# ---------------------------------------------------------------- looking again


def test_a_plan_is_resumed_although_images_were_added_and_not_if_planned_ones_changed(tmp_path):
    source = many(tmp_path / "data")
    reader = reader_of(source)
    first = plan_of(tmp_path / "out", reader)
    assert first.fingerprint["sources"] == plans.inputs_digest(reader.inputs())
    write_folder(source, pairs("sa_9", folder="new/"))
    assert plan_of(tmp_path / "out", reader) == first
    assert plans.inputs_digest(reader.inputs()) != first.fingerprint["sources"]
    shards.commit(first, 0, **_nothing(first))
    for change in (lambda path: path.write_bytes(b"longer than before"), Path.unlink):
        change(source / "0" / "sa_00.jpg")
        with pytest.raises(ConfigError, match="sources: planned"):
            plan_of(tmp_path / "out", reader)


def _nothing(plan: shards.Plan) -> dict:
    rows, rejects = schema.table([], schema.CHAT_ROW), schema.table([], schema.REJECT_ROW)
    return {"rows": rows, "rejects": rejects, "summary": {"counts": {"samples_out": 1, "inputs_in": 2}}}


def test_a_plan_of_an_earlier_version_has_a_file_for_each_shard(tmp_path, monkeypatch):
    reader = reader_of(many(tmp_path / "data"))
    inputs = planned(plan_of(tmp_path / "new", reader))
    monkeypatch.setattr(shards, "FILE_SHARDS", 1)
    plan_of(tmp_path / "old", reader)
    body = json.loads((tmp_path / "old/plan.json").read_text())
    assert body.pop("file_shards") == 1 and len(list((tmp_path / "old/plan").rglob("inputs-*"))) == 9
    (tmp_path / "old/plan.json").write_text(json.dumps(body))
    found = shards.load_plan(str(tmp_path / "old"))
    assert found is not None and planned(found) == inputs


# ---------------------------------------------------------------- commit records


def test_groups_of_commit_records_say_the_same_as_the_records(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "GROUP_SHARDS", 3)
    plan = plan_of(tmp_path / "out", reader_of(many(tmp_path / "data")))
    assert len(plan.shard_rows) == 9
    for shard in (*range(7), 8):
        shards.commit(plan, shard, **_nothing(plan))
    alone = sorted(shards.records_of(plan), key=lambda record: record["shard"])
    groups = shards.Groups(plan)
    for shard in (*range(7), 8):
        groups.add(shard)
    assert {path.name for path in (tmp_path / "out/commit-groups").iterdir()} == {
        "group-00000.json",
        "group-00001.json",
    }
    asked: list[str] = []
    read = storage.read_json
    monkeypatch.setattr(storage, "read_json", lambda uri: (asked.append(uri), read(uri))[1])
    assert sorted(shards.records_of(plan), key=lambda record: record["shard"]) == alone
    assert len(asked) == 4
    (tmp_path / "out/commits/shard-00001.json").unlink()  # so that it is done again
    assert [record["shard"] for record in sorted(shards.records_of(plan), key=lambda one: one["shard"])] == [
        *(0, 2),
        *(3, 4, 5, 6, 8),
    ]
