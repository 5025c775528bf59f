"""Reader of DAM's archives: samples as rows, and pickles that run nothing."""

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ingestion import image_source
from pipelines.ingestion.reader import Input, Reader
from tests.readers import ANY, build_reader, read_all
from tests.region_texts import HEIGHT, WIDTH, picture, rle, said


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def sample(*entries: Any, protocol: int = 4) -> bytes:
    return pickle.dumps(list(entries), protocol=protocol)


def entry(column: int = 0, **fields: Any) -> dict[str, Any]:
    return {"mask_rle": rle(column), "caption": "a dog", "img_id": 3, "more": [1], **fields}


def dam_tar(folder: Path | str) -> Reader:
    return build_reader("dam_tar", source=str(folder), dataset="d")


def test_samples_of_archives_are_rows_named_by_their_archive(tmp_path):
    members = {"01.jpg": picture(), "01.pickle": sample(entry(0), entry(1, caption="a cat"))}
    in_bytes = {**rle(2), "counts": rle(2)["counts"].encode()}
    tar(tmp_path / "a.tar", members | {"02.jpg": picture(), "02.pickle": sample(protocol=2)})
    tar(tmp_path / "b.tar", {"01.pickle": sample(entry(mask_rle=in_bytes)), "01.jpg": picture()})
    rows, rejects = read_all(dam_tar(tmp_path))
    assert not rejects and [row["image_id"] for row in rows] == ["a/01", "a/02", "b/01"]
    assert [text for _, _, text, *_ in said(rows[0])] == ["a dog", "a cat"]
    assert rows[1]["masks"] == [] and (rows[1]["height"], rows[1]["width"]) == (HEIGHT, WIDTH)
    assert rows[2]["masks"][0]["rle"] == rle(2)["counts"]
    for row in rows:
        assert image_source.read_image(row["image_uri"], expected_hw=(HEIGHT, WIDTH)).shape[2] == 3
    (one,) = [item for item in dam_tar(tmp_path / "b.tar").inputs() if isinstance(item, Input)]
    assert one.key == "b/01"


class _Bomb:
    def __reduce__(self) -> Any:
        return (print, ("ran",))


def test_pickles_that_cannot_be_used_are_rejected_and_run_nothing(tmp_path, capsys):
    bodies = {
        "1": pickle.dumps([_Bomb()]),
        "2": b"\x80\x04 no pickle",
        "3": pickle.dumps({"a": 1}),
        "4": sample(entry(caption=None), {"caption": "x"}, 5, entry(1, mask_rle=rle(0, (3, 3)))),
        "5": sample(np.float64(3)),
    }
    members = {f"{name}.pickle": body for name, body in bodies.items()}
    members |= {f"{name}.jpg": picture() for name in bodies} | {
        "6.jpg": b"",
        "../7.jpg": b"",
        "8.pickle": b"",
    }
    tar(tmp_path / "a.tar", members)
    rows, rejects = read_all(dam_tar(tmp_path))
    assert [(row["image_id"], len(row["masks"])) for row in rows] == [("a/4", 1)]
    whole = [(one["row_id"], one["reason"]) for one in rejects if one["mask_id"] is None]
    assert sorted(whole) == [
        ("a.tar: ../7.jpg", "unsafe_path"),
        ("a/1", "pickle_global"),
        ("a/2", "pickle"),
        ("a/3", "parquet_value"),
        ("a/5", "pickle_global"),
        ("a/6", "missing_annotation"),
        ("a/8", "missing_image"),
    ]
    assert sum(one["num_masks"] for one in rejects) == 3
    assert "ran" not in capsys.readouterr().out


@ANY
@given(data=st.data())
def test_damaged_pickles_never_crash(tmp_path, data):
    raw = bytearray(sample(entry(), entry(1)))
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
        raw[place] = data.draw(st.integers(0, 255))
    tar(
        tmp_path / "a.tar",
        {"1.jpg": picture(), "1.pickle": bytes(raw[: data.draw(st.integers(0, len(raw)))])},
    )
    rows, rejects = read_all(dam_tar(tmp_path))
    assert len(rows) + sum(one["mask_id"] is None for one in rejects) == 1


def test_samples_of_unpacked_archives_keep_apart(tmp_path):
    for name in ("a/1", "b/1"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.jpg").write_bytes(picture())
        (tmp_path / f"{name}.pickle").write_bytes(sample(entry()))
    rows, rejects = read_all(dam_tar(tmp_path))
    assert [row["image_id"] for row in rows] == ["a/1", "b/1"] and not rejects


def test_masks_of_an_image_that_may_not_be_read_are_counted(tmp_path):
    (folder := tmp_path / "in").mkdir()
    (tmp_path / "out.jpg").write_bytes(picture())
    (folder / "1.jpg").symlink_to(tmp_path / "out.jpg")
    (folder / "1.pickle").write_bytes(sample(entry(), entry(1)))
    rows, rejects = read_all(dam_tar(folder))
    assert not rows and [one["num_masks"] for one in rejects] == [2]
