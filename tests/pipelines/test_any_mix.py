"""Whatever records a dataset mixes, a run whose store is healthy ends with exit 0 or 3, and counts add up.

Names of images, image files, annotations, label maps and lines of chats are drawn from good ones and from
every kind of bad one; on a disk and on S3 the verdicts are the same.
"""

import io
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs.compose_dialogues import main as compose_dialogues
from jobs.tokenize_corpus import main as tokenize_corpus
from pipelines import shards, storage
from samtok import masks
from tests.corpora import save_micro_tokenizer
from tests.folders import labelme, png, shape

HEIGHT, WIDTH = 24, 32
RLE = masks.encode(np.pad(np.ones((8, 8), bool), ((4, HEIGHT - 12), (5, WIDTH - 13))))


def picture(height: int = HEIGHT, width: int = WIDTH) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


PNG = picture()
HEADER = PNG[:16] + (20_000).to_bytes(4) + (20_000).to_bytes(4) + PNG[24:]

FILES: dict[str, bytes | None] = {
    "good": PNG,
    "without its end": PNG[:-8],
    "cut": PNG[: len(PNG) // 2],
    "empty": b"",
    "text": b"no image",
    "another size": picture(10, 10),
    "a bomb": HEADER,
    "missing": None,
}
"""Content of an image's file."""

NAMES: tuple[Any, ...] = (
    *("{}.png", "./{}.png", "dir//{}.png", "{}.png/.", "ROOT/{}.png"),  # of the file that is there
    *("", ".", "./", "dir", "{}.png/b.png", "../{}.png", "/etc/passwd", "C:\\a.png", "ROOT/../a.png"),
    *("x" * 300 + ".png", "é" * 200 + ".png", "x" * 5000, "a\0b.png", "\ud800.png", "a\u202eb.png"),
    *("data:image/png;base64,iVBORw0KGgo=", "https://host/a.png", "s3://elsewhere/a.png", "a.tar#0:9:b.png"),
    *(None, 7, 1.5, True, ["a.png"], {"name": "a.png"}),
)
"""Names in records; ``{}`` is the number of the image, ROOT its folder."""

SEGMENTATIONS: tuple[Any, ...] = (
    *({"size": [HEIGHT, WIDTH], "counts": RLE}, [[5, 5, 17, 5, 17, 17, 5, 17]]),
    *({"size": [HEIGHT, WIDTH], "counts": RLE[:-1]}, {"size": [9, 9], "counts": RLE}, {"counts": RLE}),
    *({"size": [HEIGHT, WIDTH], "counts": [5, -3, 9]}, {"size": [HEIGHT, WIDTH], "counts": [10**30, 2]}),
    *(
        [[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]],
        [[900, 900, 990, 900, 990, 990]],
        [[1, 2, 3, 4]],
        [[1, 1, 2, 2, 3, 3]],
    ),
    *([[float("nan")] * 6], [[float("inf")] * 6], [], [[]], [["a"] * 6], None, "x", 5, {}, [[[1, 2]]]),
)

record = st.fixed_dictionaries(
    {
        "file": st.sampled_from(sorted(FILES)),
        "name": st.one_of(st.just("{}.png"), st.sampled_from(NAMES)),
        "size": st.sampled_from(
            [(HEIGHT, WIDTH)] * 6 + [(0, 5), (-3, 4), (10**9, 10**9), ("24", 32), (None, 9)]
        ),
        "masks": st.lists(
            st.fixed_dictionaries(
                {
                    "segmentation": st.sampled_from(SEGMENTATIONS),
                    "iscrowd": st.sampled_from([0, 0, 1, None, "yes", 2]),
                    "category_id": st.sampled_from([1, 1, 9, None, "a", [1]]),
                    "image_id": st.sampled_from([None, None, None, 99, "x", [3]]),
                }
            ),
            max_size=3,
        ),
    }
)
IGNORED = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture)
EXAMPLES = settings(max_examples=8, deadline=None, suppress_health_check=IGNORED)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_micro_tokenizer(tmp_path_factory.mktemp("tokenizer") / "micro")


def fresh(root: str) -> str:
    return f"{root}/{uuid.uuid4().hex[:8]}"


def write_corpus(root: str, mix: list[dict[str, Any]]) -> str:
    """Writes the images and instances.json of a mix; returns the folder of the images."""
    folder = f"{root}/images"
    storage.write_bytes(f"{folder}/dir/some.txt", b"x")
    images, annotations = [], []
    for number, one in enumerate(mix, start=1):
        if (data := FILES[one["file"]]) is not None:
            for place in (f"{number}.png", f"dir/{number}.png"):
                storage.write_bytes(f"{folder}/{place}", data)
        images.append(
            {
                "id": number,
                "file_name": named(one["name"], folder, number),
                "height": one["size"][0],
                "width": one["size"][1],
            }
        )
        for mask in one["masks"]:
            own = {"id": len(annotations) + 1, "image_id": mask["image_id"] or number}
            annotations.append({**mask, **own})
    body = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a\ud800"}]}
    storage.write_bytes(f"{root}/instances.json", json.dumps(body).encode())
    return folder


def named(name: Any, folder: str, number: int) -> Any:
    return name.replace("ROOT", folder).replace("{}", str(number)) if isinstance(name, str) else name


def tokenize(root: str, out: str, tokenizer: str, *more: str) -> int:
    return tokenize_corpus(
        [
            *("--corpus.reader", "coco", "--corpus.source", f"{root}/instances.json", "--corpus.images"),
            *(
                f"{root}/images",
                "--out",
                out,
                "--tokenizer",
                tokenizer,
                "--workers",
                "0",
                "--tracking",
                "off",
            ),
            *("--report-images", "0", "--max-image-pixels", "1000000", *more),
        ]
    )


def verdicts(out: str) -> tuple[Counter[tuple[str, ...]], dict[str, int]]:
    """Returns row id, mask id and reason of all rejects, and the totals, having checked that these add up."""
    manifest = shards.load_manifest(out)
    totals = manifest["totals"]
    assert totals["rows_in"] == totals["rows_out"] + totals["rows_rejected"]
    assert totals["masks_in"] == totals["masks_out"] + totals["masks_rejected"] + totals["masks_filtered"]
    files = [one["rejects"]["file"] for one in manifest["shards"]]
    files += [manifest["plan_rejects"]["file"]] if manifest["plan_rejects"] else []
    found: Counter[tuple[str, ...]] = Counter()
    for name in files:
        with storage.open_input(f"{out}/{name}") as file:
            for entry in pq.read_table(file).to_pylist():
                found[entry["row_id"], entry["mask_id"] or "", entry["reason"]] += 1
    return found, totals


@pytest.mark.slow
@pytest.mark.numerics
@EXAMPLES
@given(mix=st.lists(record, min_size=1, max_size=5))
def test_any_mix_of_images_and_annotations_ends_with_exit_0_or_3(tmp_path_factory, tokenizer, mix):
    root = str(tmp_path_factory.mktemp("mix"))
    write_corpus(root, mix)
    assert tokenize(root, f"{root}/words", tokenizer, "--max-reject-rate", "1") in (0, 3)
    if shards.load_plan(f"{root}/words") is not None:  # else no image was there at all
        _, totals = verdicts(f"{root}/words")
        assert totals["rows_in"] == len(mix)
        assert totals["masks_in"] == sum(len(one["masks"]) for one in mix)
    shutil.rmtree(root)


def test_every_kind_of_record_at_once_is_counted(tmp_path: Path, tokenizer: str):
    """All names with a good file, all files with a good name, all masks: none hides another."""
    good = {"file": "good", "name": "{}.png", "size": (HEIGHT, WIDTH)}
    mask = {"segmentation": SEGMENTATIONS[0], "iscrowd": 0, "category_id": 1, "image_id": None}
    mix = [{**good, "name": name, "masks": [mask]} for name in NAMES]
    mix += [{**good, "file": file, "masks": [mask]} for file in FILES]
    mix += [{**good, "masks": [{**mask, "segmentation": one} for one in SEGMENTATIONS]}]
    folder = write_corpus(str(tmp_path), mix)
    os.mkfifo(f"{folder}/pipe.png")
    (Path(folder) / "good.png").write_bytes(PNG)
    (Path(folder) / "inside.png").symlink_to(Path(folder) / "good.png")
    (Path(folder) / "dead.png").symlink_to(Path(folder) / "nothing")
    (tmp_path / "elsewhere.png").write_bytes(PNG)
    (Path(folder) / "outside.png").symlink_to(tmp_path / "elsewhere.png")
    extra = [{**good, "name": f"{name}.png", "masks": []} for name in ("pipe", "inside", "dead", "outside")]
    write_corpus(str(tmp_path), [*mix, *extra])
    assert tokenize(str(tmp_path), str(tmp_path / "words"), tokenizer, "--max-reject-rate", "1") == 0
    found, totals = verdicts(str(tmp_path / "words"))
    assert totals["rows_out"] == 5 + 2 + 1 + 1  # names, files, masks, links
    first = len(mix) + 1
    for number, reason in ((0, "image_kind"), (2, "image_missing"), (3, "unsafe_path")):
        assert found[str(first + number), "", reason] == 1
    more = ("--max-reject-rate", "1", "--corpus.link-root", str(tmp_path))
    assert tokenize(str(tmp_path), str(tmp_path / "linked"), tokenizer, *more) == 0
    assert verdicts(str(tmp_path / "linked"))[1]["rows_out"] == totals["rows_out"] + 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(EXAMPLES, max_examples=6)
@given(mix=st.lists(record, min_size=1, max_size=6))
def test_any_mix_has_the_same_verdicts_on_s3(tmp_path_factory, bucket, tokenizer, mix):
    roots = str(tmp_path_factory.mktemp("mix")), fresh(bucket)
    found = []
    for root in roots:
        write_corpus(root, mix)
        code = tokenize(root, f"{root}/words", tokenizer, "--max-reject-rate", "1")
        planned = shards.load_plan(f"{root}/words") is not None
        found.append((code, verdicts(f"{root}/words") if planned else None))
    assert found[0] == found[1]
    assert found[0][0] in (0, 3)


# ---------------------------------------------------------------- plain folders

SQUARE = np.pad(np.ones((8, 8), np.uint8), ((4, HEIGHT - 12), (5, WIDTH - 13)))
POINTS = [[5, 4], [13, 4], [13, 12], [5, 12]]
LINE = b"0 0.15 0.17 0.4 0.17 0.4 0.5 0.15 0.5\n"
PLACES = {"masks": "masks/{}/dog.png", "labelme": "json/{}.json", "yolo": "labels/{}.txt"}
"""Where the annotations of an image are."""
CONTENTS: dict[str, tuple[bytes | None, ...]] = {
    "masks": (png(SQUARE), png(SQUARE * 0), png(SQUARE)[:40], png(SQUARE[:9]), PNG, HEADER, b"", b"x", None),
    "labelme": (
        *(labelme(shape(POINTS), image=name, imageHeight=HEIGHT, imageWidth=WIDTH) for name in NAMES),
        *(labelme(shape(POINTS), 7, shape(kind="point"), image="{}.png", imageHeight=None, imageWidth=None),),
        *(b"", b"{", b"[]", b"null", b'{"shapes": [], "imagePath": "{}.png"}', None),
    ),
    "yolo": (LINE, LINE * 2 + b"x", b"1 0.5 0.5 0.1 0.1", b"0 5 5 9 9", b"0 nan 1 1 1", b"\xff", b"", None),
}
"""What these files may hold, by reader; None for no file."""

folder_record = st.fixed_dictionaries(
    {"file": st.sampled_from(["good", *sorted(FILES)]), "suffix": st.sampled_from(["png", "JPG", "webp"])}
)


def tokenize_folder(root: str, kind: str, tokenizer: str) -> int:
    place = PLACES[kind].partition("/")[0]
    return tokenize_corpus(
        [
            *(
                "--corpus.reader",
                kind,
                "--corpus.source",
                f"{root}/{place}",
                "--corpus.images",
                f"{root}/images",
            ),
            *("--out", f"{root}/words", "--tokenizer", tokenizer, "--workers", "0", "--tracking", "off"),
            *("--report-images", "0", "--max-image-pixels", "1000000", "--max-reject-rate", "1"),
        ]
    )


def write_folder(root: str, kind: str, mix: Sequence[tuple[dict[str, Any], bytes | None]]) -> None:
    for number, (one, content) in enumerate(mix, start=1):
        image = FILES[one["file"]]
        if image is not None:
            storage.write_bytes(f"{root}/images/{number}.{one['suffix']}", image)
        if content is not None:
            data = content.replace(b"{}", b"%d" % number).replace(b"ROOT", f"{root}/images".encode())
            storage.write_bytes(f"{root}/{PLACES[kind].format(number)}", data)


@pytest.mark.slow
@EXAMPLES
@given(data=st.data(), kind=st.sampled_from(sorted(PLACES)))
def test_any_mix_of_a_plain_folder_ends_with_exit_0_or_3(tmp_path_factory, tokenizer, data, kind):
    root = str(tmp_path_factory.mktemp("mix"))
    pair = st.tuples(folder_record, st.sampled_from(CONTENTS[kind]))
    write_folder(root, kind, data.draw(st.lists(pair, min_size=1, max_size=5)))
    storage.write_bytes(f"{root}/images/some.txt", b"x")
    storage.write_bytes(f"{root}/{PLACES[kind].partition('/')[0]}/some.md", b"x")
    assert tokenize_folder(root, kind, tokenizer) in (0, 3)
    if shards.load_plan(f"{root}/words") is not None:
        verdicts(f"{root}/words")
    shutil.rmtree(root)


@pytest.mark.parametrize("kind", sorted(PLACES))
def test_every_kind_of_file_of_a_plain_folder_at_once_is_counted(tmp_path: Path, tokenizer: str, kind: str):
    good = {"file": "good", "suffix": "png"}
    mix = [(good, content) for content in CONTENTS[kind]]
    mix += [({**good, "file": file}, CONTENTS[kind][0]) for file in FILES]
    write_folder(str(tmp_path), kind, mix)
    assert tokenize_folder(str(tmp_path), kind, tokenizer) == 0
    _, totals = verdicts(str(tmp_path / "words"))
    unseen = {"masks": 1, "labelme": 1, "yolo": 0}[
        kind
    ]  # a mask without image is no row, nor is a lone image
    assert totals["rows_in"] == len(mix) - unseen
    assert totals["rows_out"] >= {"masks": 3, "labelme": 4, "yolo": 7}[kind]


# ---------------------------------------------------------------- label maps

IDS = np.pad(np.full((8, 8), 26, np.uint8), ((4, HEIGHT - 12), (5, WIDTH - 13)))


def label_map(ids: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(ids).save(buffer, "PNG")
    return buffer.getvalue()


MAPS = {**FILES, "good": label_map(IDS), "another size": label_map(IDS[:-1])}

SEGMENTS: tuple[Any, ...] = (
    *({"id": 26, "category_id": 1}, {"id": 26, "area": 64, "iscrowd": 1}, {"id": 26, "area": 9}, {"id": 5}),
    *({"id": 0}, {"id": None}, {"id": "26"}, {}, None, 5, [], {"id": 26, "category_id": [1], "iscrowd": "x"}),
)

marked = st.fixed_dictionaries(
    {
        "file": st.sampled_from(sorted(FILES)),
        "map": st.sampled_from(sorted(MAPS)),
        "name": st.one_of(st.just("{}.png"), st.sampled_from(NAMES)),
        "map_name": st.one_of(st.just("{}.png"), st.sampled_from(NAMES)),
        "segments": st.lists(st.sampled_from(SEGMENTS), max_size=3),
        "image_id": st.sampled_from([None, None, None, 99, "x", [3]]),
    }
)


def write_maps(root: str, mix: list[dict[str, Any]]) -> None:
    """Writes the images, their maps for both readers of them, and panoptic.json of a mix."""
    images, annotations = [], []
    for number, one in enumerate(mix, start=1):
        for place, data in (
            (f"images/{number}.png", FILES[one["file"]]),
            (f"images/{number}_leftImg8bit.png", FILES[one["file"]]),
            (f"panoptic/{number}.png", MAPS[one["map"]]),
            (f"maps/{number}_gtFine_instanceIds.png", MAPS[one["map"]]),
        ):
            if data is not None:
                storage.write_bytes(f"{root}/{place}", data)
        size = {"height": HEIGHT, "width": WIDTH}
        images.append({"id": number, "file_name": named(one["name"], f"{root}/images", number), **size})
        own = {"image_id": one["image_id"] or number, "segments_info": one["segments"]}
        annotations.append({**own, "file_name": named(one["map_name"], f"{root}/panoptic", number)})
    body = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    storage.write_bytes(f"{root}/panoptic.json", json.dumps(body).encode())


def tokenize_maps(root: str, tokenizer: str) -> list[Any]:
    """Tokenizes a mix with both readers; returns exit codes and verdicts."""
    found = []
    for reader, source, more in (
        ("panoptic", "panoptic.json", ()),
        ("labelmap", "maps", ("--corpus.encoding", "cityscapes")),
    ):
        if reader == "labelmap" and not storage.list_files(f"{root}/maps"):
            continue  # which is no folder of maps
        out = f"{root}/words-{reader}"
        code = tokenize_corpus(
            [
                *("--corpus.reader", reader, "--corpus.source", f"{root}/{source}", "--corpus.images"),
                *(f"{root}/images", "--out", out, "--tokenizer", tokenizer, "--workers", "0"),
                *("--tracking", "off", "--report-images", "0", "--max-image-pixels", "1000000"),
                *("--max-reject-rate", "1", *more),
            ]
        )
        assert code in (0, 3)
        planned = shards.load_plan(out) is not None  # else no image was there at all
        found.append((code, verdicts(out) if planned else None))
    return found


@pytest.mark.slow
@EXAMPLES
@given(mix=st.lists(marked, min_size=1, max_size=5))
def test_any_mix_of_label_maps_ends_with_exit_0_or_3(tmp_path_factory, tokenizer, mix):
    root = str(tmp_path_factory.mktemp("maps"))
    write_maps(root, mix)
    found = tokenize_maps(root, tokenizer)
    if found[0][1] is not None:
        assert found[0][1][1]["masks_in"] == sum(len(one["segments"]) for one in mix)
    shutil.rmtree(root)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(EXAMPLES, max_examples=4)
@given(mix=st.lists(marked, min_size=1, max_size=5))
def test_any_mix_of_label_maps_has_the_same_verdicts_on_s3(tmp_path_factory, bucket, tokenizer, mix):
    roots = str(tmp_path_factory.mktemp("maps")), fresh(bucket)
    for root in roots:
        write_maps(root, mix)
    assert tokenize_maps(roots[0], tokenizer) == tokenize_maps(roots[1], tokenizer)


# ---------------------------------------------------------------- chats


def chat(image: Any, answer: Any = "yes") -> dict[str, Any]:
    question = {"role": "user", "content": "<image>what?"}
    return {"messages": [question, {"role": "assistant", "content": answer}], "images": [image]}


BROKEN_LINES: tuple[bytes, ...] = (
    *(b"", b"  ", b"no json", b"{", b"[]", b"5", b"null", b"{}", b'{"messages": []}', b'{"messages": {}}'),
    *(
        b"\xff\xfe",
        b'{"messages": [{"role": "user", "content": "\xe9"}]}',
        b'"\\ud800"',
        b"NaN",
        b"{}" * 3,
    ),
    json.dumps({"messages": [{"role": "user"}]}).encode(),
    json.dumps(chat("1.png") | {"conversations": []}).encode(),
)
ANSWERS: tuple[Any, ...] = (
    *("yes", "", 5, None, "\ud800", "<image>", "<|mt_start|>", "<|im_end|>", "a\0b", "\u202e", [], {}),
)
LINES = (
    *BROKEN_LINES,
    *(json.dumps(chat(name)).encode() for name in NAMES),
    *(json.dumps(chat("1.png", answer)).encode() for answer in ANSWERS),
)


def import_chats(root: Path, lines: Sequence[bytes], file: bytes | None) -> dict[str, int]:
    """Imports chats about one image file; returns the totals, having checked that they add up."""
    folder = root / "images"
    folder.mkdir()
    if file is not None:
        (folder / "1.png").write_bytes(file)
        (folder / "dir").mkdir()
        (folder / "dir" / "1.png").write_bytes(file)
    lines = [json.dumps(chat("1.png")).encode(), *lines]  # else it could be no file of lines at all
    body = b"\n".join(text.replace(b"ROOT", str(folder).encode()).replace(b"{}.", b"1.") for text in lines)
    (root / "chats.jsonl").write_bytes(body)
    flags = ("--chats.source", str(root / "chats.jsonl"), "--chats.images", str(folder), "--workers", "0")
    flags += ("--out", str(root / "out"), "--tracking", "off", "--report-samples", "0")
    assert compose_dialogues([*flags, "--max-reject-rate", "1"]) in (0, 3)
    totals = shards.load_manifest(str(root / "out"))["totals"]
    ends = sum(totals[f"items_{end}"] for end in ("out", "rejected", "filtered", "thinned", "unused"))
    assert totals["items_in"] == ends == totals["rows_in"]
    return totals


@EXAMPLES
@given(lines=st.lists(st.sampled_from(LINES), min_size=1, max_size=8), file=st.sampled_from(sorted(FILES)))
def test_any_mix_of_chat_lines_ends_with_exit_0_or_3(tmp_path_factory, lines, file):
    root = tmp_path_factory.mktemp("chats")
    import_chats(root, lines, FILES[file])
    shutil.rmtree(root)


def test_every_kind_of_line_at_once_is_counted(tmp_path: Path):
    totals = import_chats(tmp_path, LINES, PNG)
    assert totals["items_in"] == 1 + sum(bool(line.strip()) for line in LINES)  # blank lines are none
    assert totals["items_out"] >= 1 + 5 + 1  # the first line, names and answers
