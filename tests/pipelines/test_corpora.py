"""Corpora named in one flag: what is read, what is refused, and in which words."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.ingestion.coco import CocoReader
from pipelines.ingestion.corpora import CorpusConfig, CorpusSpec, reader_of
from pipelines.ingestion.sidecar import Sa1bReader
from samtok.errors import ConfigError


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
        annotation_uri="a.json",
        image_root="pictures",
        image_path="coco_url",
        mask_key="sam_mask",
    )


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
        ("", "'' is not key=value"),
        ("coco", "'coco' is not key=value.*the keys are reader, source, images.*weight, limit"),
        ("reader=sa1b,source=a,folder=b", "'folder=b' is not key=value with a known key"),
        ("reader=sa1b,source=a,b", "'b' is not key=value.*a comma always begins a new key"),
        ("reader=sa1b,source=", "source is empty"),
        ("reader=sa1b,source=a,source=b", "source is given twice, as a and b"),
        ("source=a", "it lacks reader; write reader=coco"),
        ("weight=1", "it lacks reader and source"),
        ("reader=voc,source=a", "--reader 'voc' is unknown, expected one of coco, sa1b"),
        ("reader=coco,source=a.json", "needs --images"),
        ("reader=sa1b,source=a,images=b", "drop --images b"),
        ("reader=coco,source=a,images=b,image_path=name", "image_path is 'name', expected one of"),
        ("reader=sa1b,source=gs://a/b", "gs:// is unknown"),
        ("reader=sa1b,source=a,weight=0", "weight must be a number above 0, got 0"),
        ("reader=sa1b,source=a,weight=-1", "weight must be a number above 0, got -1"),
        ("reader=sa1b,source=a,weight=nan", "weight must be a number above 0, got nan"),
        ("reader=sa1b,source=a,weight=inf", "weight must be a number above 0, got inf"),
        ("reader=sa1b,source=a,weight=two", "weight must be a number above 0, got two"),
        ("reader=sa1b,source=a,limit=0", "limit must be a whole number of at least 1, got 0"),
        ("reader=sa1b,source=a,limit=1.5", "limit must be a whole number of at least 1, got 1.5"),
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
    sa1b = parse("reader=sa1b,source=s3://bucket/sa1b")
    assert sa1b.absolute() == sa1b


def test_options_of_coco_do_not_reach_other_readers():
    corpus = CorpusConfig(reader="sa1b", source="folder", mask_key="sam_mask")
    assert reader_of(corpus) == reader_of(replace(corpus, mask_key="segmentation"))
