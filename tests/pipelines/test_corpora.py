"""Corpora named in one flag, the index of them that training reads, and single images out of it."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import cli, schema, storage
from pipelines.ingestion.coco import CocoReader
from pipelines.ingestion.corpora import CorpusConfig, CorpusSpec, reader_of
from pipelines.ingestion.reader import Input
from pipelines.ingestion.readers import READERS, ReaderKind, option_names
from pipelines.ingestion.refer import ReferReader
from pipelines.ingestion.sidecar import Sa1bReader
from pipelines.tokenization.config import TokenizeCorpusConfig
from pipelines.tokenizer_training import corpus
from pipelines.tokenizer_training.config import SamplingConfig
from pipelines.tokenizer_training.corpus import build_index, load_index, open_sources
from pipelines.training.draws import Unusable
from samtok import masks
from samtok.errors import ConfigError, DataError, StorageError
from tests.bad_folder import IMAGE_REASONS, READ_CORRECTLY, write_bad_folder
from tests.corpora import write_shapes


def parse(text: str) -> CorpusSpec:
    return CorpusSpec.parse(text, flag="corpora")


def test_every_key_reaches_its_field():
    spec = parse(
        "reader=coco,source=a.json,images=pictures,dataset=lvis,split=val,mask_key=sam_mask,"
        "image_path=coco_url,weight=2.5,limit=1000"
    )
    assert spec == CorpusSpec(
        CorpusConfig(
            reader="coco",
            source="a.json",
            images="pictures",
            dataset="lvis",
            split="val",
            mask_key="sam_mask",
            image_path="coco_url",
        ),
        weight=2.5,
        limit=1000,
    )
    assert spec.name == "lvis"
    assert spec.reader() == CocoReader(
        name="lvis",
        split="val",
        source="a.json",
        images="pictures",
        image_path="coco_url",
        mask_key="sam_mask",
    )


def test_the_keys_of_expressions_reach_their_reader(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = parse("reader=refer,source=a/refs.p,images=pictures,split=testA,sentence=raw,instances=b.json")
    assert spec.reader() == ReferReader(
        name="refer",
        split="testA",
        source="a/refs.p",
        images="pictures",
        instances="b.json",
        sentence="raw",
    )
    assert spec.absolute().corpus.instances == str(Path(tmp_path) / "b.json")
    plain = parse("reader=refer,source=a/refs.p,images=pictures").absolute()
    assert plain.corpus.instances is None and plain.reader().sentence == "sent"


WITHOUT_IMAGES = ("sa1b", "parquet", "dam_tar", "gar", "mixture")


@pytest.mark.parametrize(
    "reader", sorted(READERS.keys() - {"coco", "refer", "labelmap", "video", *WITHOUT_IMAGES})
)
def test_readers_of_other_texts_need_a_source_and_images(reader):
    assert parse(f"reader={reader},source=a.json,images=pictures").reader().name == reader
    with pytest.raises(ConfigError, match=f"reader {reader} needs images"):
        parse(f"reader={reader},source=a.json")


def test_the_folder_of_maps_reaches_its_reader(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = parse("reader=psg,source=a.json,images=s3://b/coco,panoptic=maps").absolute()
    assert spec.corpus.panoptic == str(Path(tmp_path) / "maps")
    assert spec.reader().panoptic == spec.corpus.panoptic


def test_files_of_masks_are_made_absolute_behind_the_names_of_their_datasets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = 'reader=segllm,source=a.json,images=i,mask_files="refcoco=b.json,lvis=s3://c/d.json"'
    spec = parse(text).absolute()
    assert spec.corpus.mask_files == (f"refcoco={tmp_path}/b.json", "lvis=s3://c/d.json")
    assert spec.reader().mask_files == spec.corpus.mask_files
    with pytest.raises(ConfigError, match="mask_files has 'voc=b', expected DATASET=URI, each of refcoco"):
        parse("reader=segllm,source=a,images=i,mask_files=voc=b")


def test_what_is_left_out_has_the_defaults_of_the_flags():
    spec = parse("reader=sa1b, source=s3://bucket/sa1b")
    assert spec == CorpusSpec(CorpusConfig(reader="sa1b", source="s3://bucket/sa1b"))
    assert spec.name == "sa1b"
    assert spec.reader() == Sa1bReader(name="sa1b", split="train", source="s3://bucket/sa1b")


def test_a_value_may_hold_an_equals_sign():
    assert parse("reader=sa1b,source=/data/date=today").corpus.source == "/data/date=today"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "reader and source must be given, as in reader=coco"),
        ("coco", "'coco' is not key=value with a key of reader, source, images.*weight, limit"),
        ("reader=sa1b,source=a,folder=b", "'folder=b' is not key=value with a key of"),
        ("reader=sa1b,source=a,b", "'b' is not key=value.*A value with a comma stands in quotes"),
        ("reader=sa1b,source=", "source is empty"),
        ("reader=sa1b,source=a,source=b", "source is given twice, as a and b"),
        ("source=a", "reader must be given"),
        ("weight=1", "reader and source must be given"),
        ("reader=voc,source=a", "reader must be one of coco, sa1b.*got voc"),
        ("reader=coco,source=a.json", "reader coco needs images, the folder"),
        ("reader=refer,source=a.json", "reader refer needs images"),
        ("reader=refer,source=a,images=b,sentence=text", "sentence must be one of sent, raw, got text"),
        ("reader=refer,source=a,images=b,instances=gs://c/d", "instances: Cannot use gs://c/d: gs:// is"),
        ("reader=sa1b,source=a,images=b", "drop images"),
        ("reader=coco,source=a,images=b,image_path=name", "image_path must be one of file_name, coco_url"),
        ("reader=coco,source=a,images=file:///b", "images must be a local path without file://"),
        ("reader=sa1b,source=gs://a/b", "gs:// is unknown"),
        ("reader=sa1b,source=a,mask_key=m", "mask_key is no option of reader sa1b, whose options are none"),
        ("reader=psg,source=a,images=b,sentence=raw", "sentence is no option of reader psg.* are panoptic"),
        (
            "reader=masks,source=a,images=b,mask_layout=map",
            "mask_layout must be one of auto, objects, labelmap",
        ),
        ("reader=masks,source=a,images=b,void_value=x", "void_value must be a whole number >= 1, got x"),
        ("reader=masks,source=a,images=b,void_value=99999999", "void_value must be in .1, 1.67772e.07., got"),
        ("reader=sa1b,source=a,weight=0", "weight must be a number > 0, got 0"),
        ("reader=sa1b,source=a,weight=nan", "weight must be a number > 0, got nan"),
        ("reader=sa1b,source=a,weight=inf", "weight must be a number > 0, got inf"),
        ("reader=sa1b,source=a,weight=two", "weight must be a number > 0, got two"),
        ("reader=sa1b,source=a,limit=0", "limit must be a whole number >= 1, got 0"),
        ("reader=sa1b,source=a,limit=1.5", "limit must be a whole number >= 1, got 1.5"),
    ],
)
def test_a_wrong_corpus_is_refused_with_flag_and_remedy(text, message):
    with pytest.raises(ConfigError, match=f"^--corpora .*{message}"):
        parse(text)


def test_local_paths_become_absolute_and_uris_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = parse("reader=coco,source=a.json,images=s3://bucket/pictures,weight=3").absolute()
    assert spec.corpus.source == str(Path(tmp_path) / "a.json")
    assert spec.corpus.images == "s3://bucket/pictures" and spec.weight == 3
    local = parse("reader=coco,source=s3://bucket/a.json,images=pictures").absolute()
    assert local.corpus.images == str(Path(tmp_path) / "pictures")
    sa1b = parse("reader=sa1b,source=s3://bucket/sa1b")
    assert sa1b.absolute() == sa1b


# ---------------------------------------------------------------- options of readers

OPTIONS = [
    ("coco", "mask_key", "sam_mask"),
    ("coco", "image_path", "coco_url"),
    ("coco", "image_folders", ("entity_01", "entity_02")),
    ("refer", "instances", "/data/objects, all.json"),
    ("refer", "sentence", "raw"),
    ("granf", "image_folders", ("train2017",)),
    ("psg", "panoptic", "/data/maps"),
    ("masks", "mask_layout", "labelmap"),
    ("masks", "legend", "/data/legend.json"),
    ("masks", "void_value", 255),
    ("yolo", "class_names", "/data/data.yaml"),
    ("panoptic", "panoptic", "/data/maps"),
    ("panoptic", "image_folders", ("train2017", "unlabeled2017")),
    ("coconut_parquet", "image_folders", ("train2017", "unlabeled2017")),
    ("coconut_parquet", "legend", "/data/names.json"),
    ("lisa", "instances", "/data/instances.json"),
    ("cityscapes_polygons", "overlap", "whole"),
    ("copsref", "box_order", "xyhw"),
    ("labelmap", "encoding", "ade20k_instances"),
    ("labelmap", "legend", "/data/names.json"),
    ("labelmap", "part_levels", 2),
    ("video", "video_layout", "ytvos"),
    ("video", "stride", 10),
    ("video", "masklets", "manual"),
    ("video", "video_masks", "/data/masks.json"),
    ("video", "frame_path", "{folder}/{video}/{frame:05d}.jpg"),
    ("video", "absent_targets", "no_target"),
    ("segllm", "mask_files", ("refcoco=/data/instances.json", "ade20k=/data/maps")),
]


def place(reader: str, option: str = "") -> dict[str, Any]:
    """Returns what a reader cannot do without, of kinds that have the option."""
    more = {} if reader in ("sa1b", "dam_tar", "gar") else {"images": "/data/i"}
    more |= {"encoding": "ade20k"} if reader == "labelmap" else {}
    more |= {"video_layout": "sav" if option == "masklets" else "mevis"} if reader == "video" else {}
    return {"reader": reader, "source": "/data/a.json", **more}


def listed(value: object) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else (str(value),)


def test_every_option_of_every_reader_is_in_the_list_above():
    every = {(reader, name) for reader in READERS for name in option_names(reader)}
    assert every == {(reader, name) for reader, name, _ in OPTIONS}
    assert tuple(READERS) == get_args(ReaderKind)


@pytest.mark.parametrize(("reader", "name", "value"), OPTIONS)
def test_an_option_reaches_its_reader_from_the_command_line(reader, name, value):
    given = {**place(reader, name), name: value}
    named = {f"--corpus.{key.replace('_', '-')}": text for key, text in given.items()}
    flags = [part for key, text in named.items() for part in (key, *listed(text))]
    config = cli.parse(TokenizeCorpusConfig, {}, [*flags, "--out", "/out", "--tokenizer", "tiny"], doc="")
    assert getattr(reader_of(config.corpus), name) == value
    places = ("instances", "panoptic", "legend", "class_names", "video_masks", "mask_files")
    in_fingerprint = {} if name in places else {name: value}
    expected = CorpusConfig(**place(reader, name)).identity() | in_fingerprint
    assert json.dumps(config.corpus.identity(), sort_keys=True) == json.dumps(expected, sort_keys=True)


@pytest.mark.parametrize(("reader", "name", "value"), OPTIONS)
def test_an_option_reaches_its_reader_in_one_flag_and_is_written_back(reader, name, value):
    given = {**place(reader, name), name: f'"{",".join(listed(value))}"'}
    spec = parse(",".join(f"{key}={text}" for key, text in given.items()))
    assert getattr(spec.reader(), name) == value
    assert parse(spec.text) == spec


@pytest.mark.parametrize(("reader", "name", "value"), OPTIONS)
def test_an_option_of_another_reader_is_refused_with_the_readers_own(reader, name, value, capsys):
    for other in READERS:
        if name not in option_names(other):
            with pytest.raises(ConfigError, match=f"no option of --reader {other}, whose options are"):
                CorpusConfig(**place(other), **{name: value})
    flags = ["--corpus.reader", "sa1b", "--corpus.source", "a", "--out", "o", "--tokenizer", "tiny"]
    flags += [f"--corpus.{name.replace('_', '-')}", *listed(value)]
    with pytest.raises(SystemExit):
        cli.parse(TokenizeCorpusConfig, {}, flags, doc="")
    assert "is no option of --corpus.reader sa1b, whose options are none." in capsys.readouterr().err


def test_names_without_their_folder_are_found(tmp_path):
    """EntitySeg: the file names a.png, which lies in one of several folders."""
    for folder in ("entity_01", "entity_02"):
        (tmp_path / "images" / folder).mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "images" / "entity_02" / "a.png")
    image = {"id": 1, "file_name": "a.png", "height": 8, "width": 8}
    marks = [{"id": 7, "image_id": 1, "segmentation": [[1, 1, 5, 1, 5, 5]]}]
    annotations = write_json(tmp_path / "a.json", [image], marks)
    text = f"reader=coco,source={annotations},images={tmp_path}/images"
    index = build_index([parse(f'{text},image_folders="entity_01,entity_02"')], str(tmp_path / "run"))
    assert load_index(str(tmp_path / "run")) == index
    (source,) = open_sources(index, SamplingConfig(min_area_px=1))
    assert source.read(0, most=4, draw=draw()).image.shape == (8, 8, 3)
    (plain,) = open_sources(build_index([parse(text)], str(tmp_path / "other")), SamplingConfig())
    with pytest.raises(Unusable):
        plain.read(0, most=4, draw=draw())


# ---------------------------------------------------------------- the index of training corpora


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """A folder with 12 scenes in COCO layout, some of whose masks are crowds."""
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, num_images=12, crowd_share=0.2)
    return root


def spec_of(root: Path, more: str = "", *, flag: str = "corpora") -> CorpusSpec:
    annotations = root / "annotations" / "instances_train.json"
    text = f"reader=coco,source={annotations},images={root / 'train'},dataset=shapes{more}"
    return CorpusSpec.parse(text, flag=flag)


def write_json(path: Path, images: list[dict], annotations: list[dict]) -> Path:
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    return path


def draw() -> np.random.Generator:
    return np.random.default_rng(0)


def test_an_index_lists_every_image_of_every_corpus_once(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BATCH_ROWS", 5)
    index = build_index([spec_of(shapes), spec_of(shapes, ",limit=7,weight=2")], str(tmp_path))
    assert [entry.images for entry in index.corpora] == [12, 7] and index.num_images == 19
    assert [entry.spec.weight for entry in index.corpora] == [None, 2]
    sources = open_sources(index, SamplingConfig())
    assert [(source.name, len(source)) for source in sources] == [("shapes", 12), ("shapes", 7)]
    names = [source.read(i, most=1, draw=draw()).name for source in sources for i in range(len(source))]
    expected = [f"shapes/{item.key}" for item in spec_of(shapes).reader().inputs() if isinstance(item, Input)]
    assert names == expected + expected[:7]


def test_the_same_corpora_find_their_index_again(shapes, tmp_path):
    specs = [spec_of(shapes, ",limit=3")]
    first = build_index(specs, str(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert build_index(specs, str(tmp_path)) == load_index(str(tmp_path)) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_corpus_that_was_moved_is_still_the_same(shapes, tmp_path):
    first = build_index([spec_of(shapes)], str(tmp_path / "run"))
    copy = tmp_path / "copy"
    shutil.copytree(shapes, copy)
    again = build_index([spec_of(copy)], str(tmp_path / "run"))
    assert again != first and again.digest == first.digest
    (source,) = open_sources(again, SamplingConfig())
    assert str(copy) in repr(source) and str(shapes) not in repr(source)
    assert source.read(0, most=4, draw=draw()).name == "shapes/1"


@pytest.mark.parametrize("more", [",weight=2", ",weight=1,limit=3"])
def test_the_index_of_other_corpora_is_made_again(shapes, tmp_path, more):
    build_index([spec_of(shapes, ",weight=1")], str(tmp_path / "run"))
    expected = build_index([spec_of(shapes, more)], str(tmp_path / "fresh"))
    again = build_index([spec_of(shapes, more)], str(tmp_path / "run"))
    assert again.corpora == expected.corpora and load_index(str(tmp_path / "run")) == again


def test_changed_annotations_make_another_index(shapes, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(shapes, copy)
    first = build_index([spec_of(copy)], str(tmp_path / "run"))
    annotations = copy / "annotations" / "instances_train.json"
    annotations.write_text(annotations.read_text() + " ")
    assert build_index([spec_of(copy)], str(tmp_path / "run")).digest != first.digest


def test_an_index_that_was_not_finished_is_made_again(shapes, tmp_path):
    first = build_index([spec_of(shapes)], str(tmp_path))
    (tmp_path / "index" / "index.json").unlink()
    assert load_index(str(tmp_path)) is None
    assert build_index([spec_of(shapes)], str(tmp_path)) == first


def test_images_without_masks_are_counted_and_rejects_are_kept(tmp_path):
    images = [{"id": i, "file_name": f"{i}.png", "height": 8, "width": 8} for i in (1, 2, 3)]
    annotation = {"id": 7, "image_id": 2, "segmentation": [[1, 1, 5, 1, 5, 5]]}
    annotations = write_json(
        tmp_path / "a.json", images, [annotation, {**annotation, "id": 8, "image_id": 9}]
    )
    spec = CorpusSpec.parse(f"reader=coco,source={annotations},images={tmp_path}", flag="corpora")
    (entry,) = build_index([spec], str(tmp_path / "run")).corpora
    assert (entry.images, entry.without_masks, entry.rejects) == (1, 2, 1)
    rejects = pq.read_table(tmp_path / "run" / "index" / "rejects.parquet")
    assert rejects.schema.equals(schema.REJECT_ROW)
    assert rejects["reason"].to_pylist() == ["unknown_image"]


def test_a_corpus_without_masks_ends_the_run_with_its_flag(tmp_path):
    images = [{"id": 1, "file_name": "1.png", "height": 8, "width": 8}]
    annotations = write_json(tmp_path / "a.json", images, [{"id": 8, "image_id": 9, "segmentation": []}])
    text = f"reader=coco,source={annotations},images={tmp_path}"
    spec = CorpusSpec.parse(text, flag="validation-corpora")
    message = "--validation-corpora reader=coco,source=.*a.json has no image with masks: 1 images without"
    with pytest.raises(DataError, match=f"{message} masks, rejects: 1 x unknown_image"):
        build_index([spec], str(tmp_path / "run"))
    assert not (tmp_path / "run" / "index" / "index.json").exists()


def test_a_corpus_that_does_not_exist_is_a_storage_error(tmp_path):
    spec = CorpusSpec.parse(f"reader=coco,source={tmp_path}/none.json,images=a", flag="corpora")
    with pytest.raises(StorageError, match="none.json: it does not exist"):
        build_index([spec], str(tmp_path / "run"))


# ---------------------------------------------------------------- reading one image


def read_all(root: Path, out: Path, policy: SamplingConfig, *, most: int = 64) -> tuple[list, list[dict]]:
    """Returns the samples of a corpus and the rejects of the images that gave none."""
    (source,) = open_sources(build_index([spec_of(root)], str(out)), policy)
    samples, rejects = [], []
    for i in range(len(source)):
        try:
            samples.append(source.read(i, most=most, draw=draw()))
        except Unusable as error:
            rejects.append(error.reject)
    return samples, rejects


def test_a_sample_has_the_pixels_and_masks_of_its_row(shapes, tmp_path):
    samples, rejects = read_all(shapes, tmp_path, SamplingConfig(skip=(), min_area_px=1))
    assert len(samples) == 12 and not rejects
    reader = spec_of(shapes).reader()
    for sample, item in zip(samples, reader.inputs(), strict=True):
        assert isinstance(item, Input)
        row = reader.read(item).row
        assert row is not None
        with Image.open(row["image_uri"]) as image:
            assert np.array_equal(sample.image, np.asarray(image.convert("RGB")))
        rles = [masks.encode(mask.dense()) for mask in sample.masks]
        assert rles == [mask["rle"] for mask in row["masks"]]


def test_flags_and_small_areas_are_left_out(shapes, tmp_path):
    every, _ = read_all(shapes, tmp_path, SamplingConfig(skip=(), min_area_px=1))
    without_crowds, lost = read_all(shapes, tmp_path, SamplingConfig(skip=("crowd",), min_area_px=1))
    large, lost_small = read_all(shapes, tmp_path, SamplingConfig(skip=(), min_area_px=200))
    total = sum(len(sample.masks) for sample in every)
    assert 0 < sum(len(sample.masks) for sample in without_crowds) < total
    assert sum(len(s.masks) for s in large) == sum(m.area >= 200 for s in every for m in s.masks) < total
    assert len(without_crowds) + len(lost) == len(large) + len(lost_small) == 12
    assert {entry["reason"] for entry in lost_small} <= {"all_filtered"}


def test_an_image_without_usable_masks_is_unusable_with_the_reasons(shapes, tmp_path):
    _, rejects = read_all(shapes, tmp_path, SamplingConfig(min_area_px=10**6))
    assert len(rejects) == 12
    assert schema.table(rejects, schema.REJECT_ROW).num_rows == 12
    assert {(entry["stage"], entry["dataset"], entry["reason"]) for entry in rejects} == {
        ("filter", "shapes", "all_filtered")
    }
    assert all("none of the" in entry["message"] and "min_area" in entry["message"] for entry in rejects)


def test_bad_records_become_unusable_and_the_rest_is_read(tmp_path):
    annotations = write_bad_folder(tmp_path / "bad")
    text = f"reader=coco,source={annotations},images={annotations.parent / 'images'},dataset=bad"
    index = build_index([CorpusSpec.parse(text, flag="corpora")], str(tmp_path / "run"))
    (source,) = open_sources(index, SamplingConfig())
    good, reasons = 0, []
    for i in range(len(source)):
        try:
            good += len(source.read(i, most=9, draw=draw()).masks) == 1
        except Unusable as error:
            reasons.append(error.reject["reason"])
    assert good == len(READ_CORRECTLY)
    assert sorted(reasons) == sorted(IMAGE_REASONS.values())


def test_an_image_is_not_opened_for_masks_that_are_not_trained_on(shapes, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(shapes / "annotations", copy / "annotations")  # without its pictures
    _, rejects = read_all(copy, tmp_path / "run", SamplingConfig(min_area_px=10**6))
    assert {entry["reason"] for entry in rejects} == {"all_filtered"}
    _, rejects = read_all(copy, tmp_path / "run", SamplingConfig(skip=(), min_area_px=1))
    assert {entry["reason"] for entry in rejects} == {"image_missing"}


def test_at_most_so_many_masks_are_picked_and_they_follow_the_draw(shapes, tmp_path):
    (source,) = open_sources(build_index([spec_of(shapes)], str(tmp_path)), SamplingConfig(min_area_px=1))
    full = {i: source.read(i, most=64, draw=draw()) for i in range(len(source))}
    largest = max(full, key=lambda i: len(full[i].masks))
    picks = set()
    for seed in range(20):
        once, again = (source.read(largest, most=1, draw=np.random.default_rng(seed)) for _ in range(2))
        assert len(once.masks) == 1 and np.array_equal(once.masks[0].starts, again.masks[0].starts)
        picks.add(masks.encode(once.masks[0].dense()))
    assert picks == {masks.encode(mask.dense()) for mask in full[largest].masks} and len(picks) > 1


def test_sources_travel_to_other_processes(shapes, tmp_path):
    index = build_index([spec_of(shapes)], str(tmp_path))
    sources = open_sources(index, SamplingConfig())
    sources[0].read(0, most=1, draw=draw())  # what is mapped stays here
    assert pickle.loads(pickle.dumps((index, sources))) == (index, sources)
    assert len(pickle.dumps(sources)) < 2000


def test_an_index_file_that_is_broken_says_what_to_do(shapes, tmp_path):
    index = build_index([spec_of(shapes)], str(tmp_path))
    (tmp_path / "index" / index.corpora[0].file).write_bytes(b"nothing")
    (source,) = open_sources(index, SamplingConfig())
    with pytest.raises(StorageError, match="cannot be read as an Arrow file.*Delete its folder"):
        source.read(0, most=1, draw=draw())


@pytest.mark.slow
def test_an_index_in_an_object_store_is_copied_once_and_read(shapes, bucket):
    index = build_index([spec_of(shapes)], f"{bucket}/run")
    (source,) = open_sources(index, SamplingConfig(skip=()))
    assert source.read(0, most=4, draw=draw()).name == "shapes/1"
    storage.delete(storage.join(index.uri, index.corpora[0].file))
    assert source.read(3, most=4, draw=draw()).name == "shapes/12"
    assert load_index(f"{bucket}/run") == index
