"""Names of classes in all forms of a legend, and what is none."""

import pytest

from pipelines.ingestion import legends
from samtok.errors import DataError
from tests.label_maps import found_in, picture, reader_of, reasons, regions, save
from tests.readers import read_all

LEGENDS: dict[str, tuple[bytes, str]] = {
    "cut.json": (b'{"1": "wa', "is not JSON"),
    "text.json": (b"1: wall", "is not JSON"),
    "number.json": (b"5", "holds a int"),
    "key.json": (b'{"wall": "1"}', "holds the key 'wall'"),
    "no_name.json": (b'{"1": null}', "holds the name None of the class 1"),
    "no_id.json": (b'[{"name": "wall"}]', "holds {'name': 'wall'}"),
    "surrogate.json": (b'{"1": "\\ud800"}', "holds the name"),
    "twice.txt": (b"1: wall\n1: sky\n", "holds two names of the class 1"),
    "line.txt": (b"1: wall\nsky\n", "holds the line 'sky'"),
    "bytes.txt": (b"1: \xff\n", "holds text that is not UTF-8"),
    "nothing.txt": (b"", "holds no class"),
    "nameless.txt": (b"1:\n", "holds the name '' of the class 1"),
}


@pytest.mark.parametrize("name", LEGENDS)
def test_a_legend_that_is_none_is_refused_before_anything_is_read(tmp_path, name):
    raw, message = LEGENDS[name]
    (tmp_path / name).write_bytes(raw)
    save(tmp_path / "maps" / "a.png", regions(1, 2))
    with pytest.raises(DataError, match=message):
        list(reader_of(tmp_path, "sceneparsing", legend=f"{tmp_path}/{name}").inputs())


def test_a_legend_that_is_not_there_is_named(tmp_path):
    save(tmp_path / "maps" / "a.png", regions(1, 2))
    with pytest.raises(DataError, match=r"none\.txt") as caught:
        list(reader_of(tmp_path, "sceneparsing", legend=f"{tmp_path}/none.txt").inputs())
    assert caught.value.reason == "legend_missing"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"1": "wall", "2": "sky"}'),
        ("b.json", '[{"id": 1, "name": "wall"}, {"id": 2, "name": "sky", "supercategory": "x"}]'),
        ("c.json", '["other", "wall", "sky"]'),
        ("d.txt", "1: wall\n2: sky\n\n"),
        ("e.txt", "\ufeffIdx\tName\r\n1\twall\r\n2\tsky\r\n"),
        ("f.tsv", "1 wall\n2 sky"),
    ],
)
def test_legends_are_read_in_all_their_forms(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    legend = legends.legend_of(f"{tmp_path}/{name}")
    assert {number: legend[number] for number in (1, 2)} == {1: "wall", 2: "sky"}


def test_a_class_that_the_legend_lacks_is_told_and_its_mask_stays(tmp_path):
    save(tmp_path / "maps" / "a.png", regions(1, 2))
    picture(tmp_path / "images" / "a.jpg")
    (tmp_path / "names.json").write_text('{"1": "wall"}')
    (row,), rejects = read_all(reader_of(tmp_path, "sceneparsing", legend=f"{tmp_path}/names.json"))
    assert reasons(rejects) == [("unknown_category", "a", "2", 0)]
    assert [label for _, label, _ in found_in(row).values()] == [None, "wall", None]
