"""The SA-1B reader: folders and archives give the same rows, and what is broken is named and counted."""

import io
import json
import pickle
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import schema
from pipelines.ingestion.image_source import ImageLocation, member_uri, parse_image_uri, read_image_bytes
from pipelines.ingestion.reader import Input
from pipelines.ingestion.sidecar import Sa1bReader
from samtok import masks
from samtok.errors import DataError
from tests.readers import build_reader

HEIGHT, WIDTH = 6, 8


def counts_of(top, bottom, left, right):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return {"size": [HEIGHT, WIDTH], "counts": masks.encode(mask)}


OUTER, INNER = counts_of(1, 6, 1, 7), counts_of(2, 4, 2, 4)  # nested, as SA-1B masks are


def annotation(identity, segmentation, **fields):
    extra = {"bbox": [1, 1, 5, 4], "area": 30, "predicted_iou": 0.9, "crop_box": [0, 0, 8, 6]}
    return {"id": identity, "segmentation": segmentation, **extra, **fields}


def sidecar_of(stem, annotations=None, **image):
    marks = [annotation(20, OUTER), annotation(3, INNER)] if annotations is None else annotations
    stated = {"image_id": 1, "width": WIDTH, "height": HEIGHT, "file_name": f"{stem}.jpg", **image}
    return json.dumps({"image": stated, "annotations": marks}).encode()


def image_of(stem):
    return b"\xff\xd8 picture of " + stem.encode()


def pairs(*stems, folder=""):
    files = {}
    for stem in stems:
        files[f"{folder}{stem}.jpg"] = image_of(stem)
        files[f"{folder}{stem}.json"] = sidecar_of(stem)
    return files


def write_folder(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_tar(path, files, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def reader_of(source):
    return Sa1bReader(name="sa1b", split="train", source=str(source))


def read_all(reader):
    rows, rejects = [], []
    for item in reader.inputs():
        if isinstance(item, Input):
            result = reader.read(item)
            rejects.extend(result.rejects)
            rows.extend([result.row] if result.row else [])
        else:
            rejects.append(item)
    assert schema.table(rows, schema.IMAGE_ROW).num_rows == len(rows)
    assert schema.table(rejects, schema.REJECT_ROW).num_rows == len(rejects)
    return rows, rejects


def rejected(reader):
    return [
        (entry["row_id"], entry["mask_id"], entry["reason"], entry["num_masks"])
        for entry in read_all(reader)[1]
    ]


@pytest.fixture(params=["flat", "nested", "tars", "nested_tar", "one_tar"])
def source(request, tmp_path):
    """The same three images in all the places where they can be."""
    both = {**pairs("sa_1", "sa_2", folder="sa_000000/"), **pairs("sa_10", folder="sa_000001/")}
    if request.param == "flat":
        return write_folder(tmp_path / "flat", pairs("sa_1", "sa_2", "sa_10"))
    if request.param == "nested":
        return write_folder(tmp_path / "nested", both)
    if request.param == "tars":
        write_tar(tmp_path / "tars" / "sa_000000.tar", pairs("sa_1", "sa_2", folder="./"))
        write_tar(tmp_path / "tars" / "sa_000001.tar", pairs("sa_10"))
        return tmp_path / "tars"
    return write_tar(
        tmp_path / "one" / "all.tar",
        both if request.param == "nested_tar" else pairs("sa_1", "sa_2", "sa_10"),
    )


def test_folders_and_archives_give_the_same_rows_and_images(source):
    rows, rejects = read_all(reader_of(source))
    pictures = [read_image_bytes(row.pop("image_uri")) for row in rows]

    assert rejects == []
    assert pictures == [image_of("sa_1"), image_of("sa_10"), image_of("sa_2")]
    assert rows == [
        {
            "dataset": "sa1b",
            "split": "train",
            "image_id": stem,
            "height": HEIGHT,
            "width": WIDTH,
            "masks": [
                {"mask_id": "3", "rle": INNER["counts"], "box_xyxy": None, "label": None, "flags": []},
                {"mask_id": "20", "rle": OUTER["counts"], "box_xyxy": None, "label": None, "flags": []},
            ],
            "annotations": [],
        }
        for stem in ("sa_1", "sa_10", "sa_2")
    ]


def test_inputs_are_sorted_repeatable_and_free_of_the_place(source, tmp_path):
    first, again = list(reader_of(source).inputs()), list(reader_of(source).inputs())

    assert first == again
    assert [item.key for item in first if isinstance(item, Input)] == ["sa_1", "sa_10", "sa_2"]
    assert all(isinstance(item, Input) and str(tmp_path) not in item.payload for item in first)
    assert all(isinstance(item, Input) and item.num_masks is None for item in first)


def test_a_pickled_reader_reads_in_another_process(source):
    reader = pickle.loads(pickle.dumps(reader_of(source)))
    item = next(iter(reader_of(source).inputs()))

    assert isinstance(item, Input)
    assert reader.read(item).num_masks_in == 2


def test_sources_follow_names_and_sizes_but_not_the_place(tmp_path):
    first = reader_of(write_folder(tmp_path / "a", pairs("sa_1"))).witness()
    copied = reader_of(write_folder(tmp_path / "b", pairs("sa_1"))).witness()
    larger = reader_of(write_folder(tmp_path / "b", {"sa_1.jpg": b"another size"})).witness()
    tar = reader_of(write_tar(tmp_path / "c" / "sa.tar", pairs("sa_1"))).witness()
    folder_of_tar = reader_of(tmp_path / "c").witness()

    assert first == copied != larger
    assert list(first) == ["first side-cars and images"]
    size = len(image_of("sa_1")) + len(sidecar_of("sa_1"))
    assert first["first side-cars and images"].startswith(f"2:{size}:")
    assert tar == folder_of_tar
    assert list(tar) == ["archives"]


def test_halves_of_a_pair_are_rejected_by_name(tmp_path):
    files = pairs("sa_1", "sa_2", "sa_3", "sa_4")
    del files["sa_2.jpg"], files["sa_3.json"]
    expected = [("sa_2", None, "missing_image", 0), ("sa_3", None, "missing_annotation", 0)]

    assert rejected(reader_of(write_folder(tmp_path / "folder", files))) == expected
    assert rejected(reader_of(write_tar(tmp_path / "sa.tar", files))) == expected


def test_a_pair_may_not_be_split_over_folders_or_archives(tmp_path):
    halves = [{"sa_1.jpg": image_of("sa_1")}, {"sa_1.json": sidecar_of("sa_1")}]
    for number, half in enumerate(halves):
        write_folder(tmp_path / "folder" / str(number), half)
        write_tar(tmp_path / "tars" / f"{number}.tar", half)
    expected = [("sa_1", None, "missing_annotation", 0), ("sa_1", None, "missing_image", 0)]

    assert rejected(reader_of(tmp_path / "folder")) == expected
    assert rejected(reader_of(tmp_path / "tars")) == expected


def test_a_stem_that_comes_again_is_rejected(tmp_path):
    write_folder(tmp_path, {**pairs("sa_1", folder="b/"), **pairs("sa_1", folder="a/")})
    rows, rejects = read_all(reader_of(tmp_path))

    assert [row["image_uri"] for row in rows] == [str(tmp_path / "a" / "sa_1.jpg")]
    assert [entry["reason"] for entry in rejects] == ["duplicate_image_id"]


def test_of_a_member_that_is_twice_in_an_archive_the_later_counts(tmp_path):
    path = write_tar(tmp_path / "sa.tar", {**pairs("sa_1"), "sa_1.json": b"{}"})
    write_tar(path, {"./sa_1.json": sidecar_of("sa_1")}, mode="a")

    assert rejected(reader_of(path)) == [("sa_1.json", None, "duplicate_member", 0)]
    assert len(read_all(reader_of(path))[0]) == 1


@pytest.mark.parametrize(
    ("content", "reason", "num_masks"),
    [
        (b"{", "json", 0),
        (b"", "json", 0),
        (b"[]", "sidecar_layout", 0),
        (b'{"image": {}}', "sidecar_layout", 0),
        (b'{"image": {}, "annotations": {}}', "sidecar_layout", 0),
        (sidecar_of("sa_2"), "file_name", 2),
        (sidecar_of("sa_1", file_name="../sa_1.jpg"), "file_name", 2),
        (sidecar_of("sa_1", file_name=None), "file_name", 2),
        (sidecar_of("sa_1", height=0), "image_size", 2),
        (sidecar_of("sa_1", width=True), "image_size", 2),
    ],
)
def test_a_broken_sidecar_loses_its_row_with_the_masks_that_could_be_counted(
    tmp_path, content, reason, num_masks
):
    reader = reader_of(write_folder(tmp_path, {**pairs("sa_1", "sa_2"), "sa_1.json": content}))

    assert rejected(reader) == [("sa_1", None, reason, num_masks)]
    assert [row["image_id"] for row in read_all(reader)[0]] == ["sa_2"]


def test_bad_masks_leave_the_others_in_the_row(tmp_path):
    short = {"size": [HEIGHT, WIDTH], "counts": [40]}
    swapped = {**OUTER, "size": [WIDTH, HEIGHT]}
    marks = [
        annotation(1, OUTER),
        annotation(2, short),
        annotation(3, swapped),
        annotation(1, OUTER),
        {"id": 4},
        5,
    ]
    write_folder(tmp_path, {**pairs("sa_1"), "sa_1.json": sidecar_of("sa_1", marks)})
    rows, rejects = read_all(reader_of(tmp_path))

    assert [(mask["mask_id"], mask["flags"]) for mask in rows[0]["masks"]] == [("1", []), ("4", ["empty"])]
    assert sorted((r["mask_id"], r["reason"]) for r in rejects) == [
        ("#5", "annotation_type"),
        ("1", "duplicate_annotation_id"),
        ("2", "rle_sum"),
        ("3", "rle_size"),
    ]


def test_too_large_sidecars_are_refused_before_they_are_parsed(tmp_path):
    places = write_folder(tmp_path / "a", pairs("sa_1")), write_tar(tmp_path / "a.tar", pairs("sa_1"))
    size = len(sidecar_of("sa_1"))

    for place in places:
        assert rejected(replace(reader_of(place), max_sidecar_bytes=size)) == []
        reasons = rejected(replace(reader_of(place), max_sidecar_bytes=size - 1))
        assert reasons == [("sa_1", None, "sidecar_too_large", 0)]


def test_names_that_leave_the_archive_are_rejected(tmp_path):
    names = ["/sa_1.jpg", "../sa_2.jpg", "a/../../sa_3.jpg", "a\\sa_4.jpg", "sa_5\n.jpg", "b/\udcff.jpg"]
    path = write_tar(tmp_path / "sa.tar", {**dict.fromkeys(names, b"x"), **pairs("sa_9")})
    rows, rejects = read_all(reader_of(path))

    assert [row["image_id"] for row in rows] == ["sa_9"]
    assert [entry["reason"] for entry in rejects] == ["unsafe_path"] * len(names)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_an_archive_are_rejected(tmp_path, kind):
    path = write_tar(tmp_path / "sa.tar", {"sa_1.json": sidecar_of("sa_1")})
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("sa_1.jpg")
        info.type, info.linkname = kind, "sa_1.json"
        archive.addfile(info)

    assert [entry["reason"] for entry in read_all(reader_of(path))[1]] == ["unsafe_path", "missing_image"]


def test_links_out_of_the_folder_are_rejected(tmp_path):
    write_folder(tmp_path / "a", {"sa_1.json": sidecar_of("sa_1")})
    (tmp_path / "secret").write_bytes(b"key")
    (tmp_path / "a" / "sa_1.jpg").symlink_to(tmp_path / "secret")

    assert rejected(reader_of(tmp_path / "a")) == [("sa_1", None, "unsafe_path", 2)]


@pytest.mark.parametrize("suffix", ["tar.gz", "tgz", "tar.bz2", "tar.xz", "tar.zst"])
def test_compressed_archives_are_refused_with_the_way_out(tmp_path, suffix):
    (tmp_path / f"sa.{suffix}").write_bytes(b"compressed")

    for place in (tmp_path, tmp_path / f"sa.{suffix}"):
        with pytest.raises(DataError, match=r"is a compressed archive.*unpack it"):
            list(reader_of(place).inputs())


def test_an_archive_that_is_secretly_compressed_is_refused(tmp_path):
    path = write_tar(tmp_path / "sa.tar", pairs("sa_1"), mode="w:gz")

    with pytest.raises(DataError, match=r"sa\.tar cannot be read as an uncompressed tar"):
        list(reader_of(path).inputs())


@given(cut=st.integers(min_value=0))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_archive_cut_anywhere_before_its_end_mark_is_refused(tmp_path, cut):
    path = write_tar(tmp_path / "sa.tar", pairs("sa_1", "sa_2"))
    content = path.read_bytes()
    path.write_bytes(content[: cut % len(content.rstrip(b"\0"))])

    with pytest.raises(DataError, match=r"sa\.tar (cannot be read|has no end mark)"):
        list(reader_of(path).inputs())


def test_of_several_archives_those_that_are_cut_are_rejected_by_name(tmp_path, lines):
    for number in (1, 2, 3):
        path = write_tar(tmp_path / f"{number}.tar", pairs(f"sa_{number}"))
        if number > 1:
            path.write_bytes(path.read_bytes()[:700])
    rows, rejects = read_all(reader_of(tmp_path))

    assert [row["image_id"] for row in rows] == ["sa_1"]
    assert [(entry["row_id"], entry["reason"]) for entry in rejects] == [
        ("2.tar", "archive"),
        ("3.tar", "archive"),
    ]
    assert "2 of 3 archives are left out: " in lines[-1] and "2.tar" in lines[-1] and "3.tar" in lines[-1]
    (tmp_path / "1.tar").unlink()
    with pytest.raises(DataError, match=r"2\.tar .*; .*3\.tar"):
        list(reader_of(tmp_path).inputs())


@pytest.mark.parametrize(("image", "sidecar"), [(".JPG", ".JSON"), (".jpeg", ".json"), (".Jpeg", ".Json")])
def test_suffixes_of_other_cases_and_lengths_are_read(tmp_path, image, sidecar):
    named = sidecar_of("sa_1", file_name=f"sa_1{image}")
    files = {f"sa_1{image}": image_of("sa_1"), f"sa_1{sidecar}": named}
    for source in (write_folder(tmp_path / "folder", files), write_tar(tmp_path / "sa.tar", files)):
        rows, rejects = read_all(reader_of(source))
        assert rejects == [] and rows[0]["image_uri"].endswith(f"sa_1{image}")


def test_of_two_images_of_one_name_the_first_is_named(tmp_path):
    files = {**pairs("sa_1"), "sa_1.jpeg": image_of("sa_1")}
    assert rejected(reader_of(write_folder(tmp_path, files)))[0][2] == "duplicate_member"


def test_a_source_without_pairs_or_with_both_kinds_is_refused(tmp_path):
    write_folder(tmp_path / "none", {"readme.txt": b"x"})
    write_folder(tmp_path / "both", pairs("sa_1"))
    write_tar(tmp_path / "both" / "sa.tar", pairs("sa_1"))

    with pytest.raises(DataError, match=r"0 \.tar archives and 0 .* among 1 files"):
        list(reader_of(tmp_path / "none").inputs())
    with pytest.raises(DataError, match=r"1 \.tar archives and 2 .* among 3 files"):
        reader_of(tmp_path / "both").witness()


def test_an_image_uri_is_parsed_into_what_it_was_made_of():
    uri = member_uri("s3://b/sa#1:2:3/sa_0.tar", 512, 7, "a/b#c:1.jpg")

    assert parse_image_uri(uri) == ImageLocation("s3://b/sa#1:2:3/sa_0.tar", 512, 7, "a/b#c:1.jpg")
    assert parse_image_uri(member_uri("a.tar", 5, 7, "b.tar#1:2:c")) == ImageLocation(
        "a.tar", 5, 7, "b.tar#1:2:c"
    )
    assert parse_image_uri("s3://b/a#1.jpg") == ImageLocation("s3://b/a#1.jpg")


@given(
    archive=st.text(), offset=st.integers(0, 10**17), size=st.integers(0, 10**17), name=st.text(min_size=1)
)
def test_every_member_uri_survives_the_round_trip(archive, offset, size, name):
    archive = archive.replace(".tar#", "") + "x.tar"

    assert parse_image_uri(member_uri(archive, offset, size, name)) == ImageLocation(
        archive, offset, size, name
    )


def test_images_beyond_the_limit_cut_or_empty_are_refused(tmp_path):
    path = write_tar(tmp_path / "sa.tar", pairs("sa_1"))
    (tmp_path / "large.jpg").write_bytes(bytes(11))
    (tmp_path / "empty.jpg").touch()

    assert read_image_bytes(str(tmp_path / "large.jpg"), max_bytes=11) == bytes(11)
    for uri in (
        tmp_path / "large.jpg",
        *(member_uri(str(path), 512, size, "sa_1.jpg") for size in (11, 10**17)),
    ):
        with pytest.raises(DataError, match="expected an image of at most 10"):
            read_image_bytes(str(uri), max_bytes=10)
    with pytest.raises(DataError, match=r"ends after .* of 100000 bytes"):
        read_image_bytes(member_uri(str(path), 512, 100_000, "sa_1.jpg"))
    with pytest.raises(DataError, match="is empty"):
        read_image_bytes(str(tmp_path / "empty.jpg"))
    with pytest.raises(DataError, match="does not exist"):
        read_image_bytes(str(tmp_path / "absent.jpg"))


def test_the_registry_builds_an_sa1b_reader(tmp_path):
    built = build_reader("sa1b", source=str(tmp_path), split="train", dataset="sa1b")

    assert built == reader_of(tmp_path)


MARKS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.integers(1, 4) | st.none() | st.text(max_size=2),
        "segmentation": st.sampled_from(
            [OUTER, INNER, None, [], "x", {"size": [6, 8], "counts": [1]}, [[0, 0, 1, 1]]]
        ),
        "bbox": st.sampled_from([[0, 0, 2, 2], [0], None]),
    },
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    marks=st.lists(MARKS | st.none() | st.integers(), max_size=8),
    height=st.sampled_from([HEIGHT, HEIGHT, -1]),
)
def test_masks_in_are_masks_kept_or_rejected(tmp_path, marks, height):
    write_folder(tmp_path, {"sa_1.jpg": b"x", "sa_1.json": sidecar_of("sa_1", marks, height=height)})
    rows, rejects = read_all(reader_of(tmp_path))

    assert len(rows) == (height > 0)
    kept = sum(len(row["masks"]) for row in rows)
    assert kept + sum(entry["num_masks"] for entry in rejects) == len(marks)
