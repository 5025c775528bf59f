"""Evaluation of tokenizers without Ray: the numbers against the bare tokenizer, names, files, report."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines import cli, schema, shards
from pipelines.grpo.trajectories import TRAJECTORY_ROW
from pipelines.job import aligned
from pipelines.mllm_evaluation.rows import ANSWER_ROW
from pipelines.tokenization.chunks import Images
from pipelines.tokenization.config import TokenizerOptions
from pipelines.tokenization.stage import TokenizeMasks
from pipelines.tokenizer_evaluation import outcome, prepare, report, summary
from pipelines.tokenizer_evaluation.config import PRESETS, EvaluateTokenizerConfig
from samtok import images, masks
from samtok.config import PRESETS as MODELS
from samtok.config import QuantizerConfig
from samtok.errors import ConfigError, DataError
from samtok.metrics import regions
from samtok.model.prompts import MaskPrompts
from samtok.model.tokenizer import MaskTokenizer
from samtok.words import format_words
from tests import corpora

POLICY = {"reconstruct": 1.0, "boundary_iou": True}
SETTINGS = {"weights_sha256": "0" * 64, "box_prompt": True, "dtype": "float32"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two data sets of different size, both tokenized with all masks reconstructed."""
    home = tmp_path_factory.mktemp("evaluation")
    uri = corpora.save_micro_tokenizer(home / "tokenizer")
    for name, side, count in (("first", 64, 6), ("second", 200, 3)):
        reader = corpora.write_shapes(home / name, num_images=count, crowd_share=0.2, side=side)
        reader = dataclasses.replace(reader, name=name)
        corpora.make_corpus(str(home / "out" / name), reader, uri, policy=POLICY, dataset=name, **SETTINGS)
    return home


def read(home, name):
    out = str(home / "out" / name)
    return summary.read_corpus(name, out, shards.load_manifest(out))


@pytest.fixture(scope="module")
def measured(home):
    return [read(home, "first"), read(home, "second")]


@pytest.fixture(scope="module")
def tokenizer(home):
    return MaskTokenizer.from_pretrained(str(home / "tokenizer"))


def expected_scores(corpus, tokenizer):
    """IoU and boundary IoU of all masks, by the bare tokenizer, image by image."""
    found = []
    for record in corpus.manifest["shards"]:
        for row in pq.read_table(Path(corpus.out) / record["data"]["file"]).to_pylist():
            image = images.decode_image(Path(row["image_uri"]).read_bytes(), where="test")
            dense = [masks.decode(m["rle"], height=row["height"], width=row["width"]) for m in row["masks"]]
            again = tokenizer.reconstruct(image, dense)
            for mask, decoded, codes in zip(dense, again.masks, again.codes, strict=True):
                found.append((masks.iou(mask, decoded), regions.boundary_iou(mask, decoded), codes.tolist()))
    return found


def test_scores_are_those_of_the_bare_tokenizer_over_masks(measured, tokenizer):
    found = summary.metrics_of(measured)
    wanted = {corpus.name: expected_scores(corpus, tokenizer) for corpus in measured}
    everything = [score for scores in wanted.values() for score in scores]
    for section, scores in (
        (found["datasets"]["first"], wanted["first"]),
        (found["datasets"]["second"], wanted["second"]),
        (found["overall"], everything),
    ):
        assert section["masks"] == len(scores) > 0
        assert section["r_acc"] == pytest.approx(np.mean([iou for iou, _, _ in scores]), abs=1e-6)
        assert section["boundary_iou"] == pytest.approx(np.mean([b for _, b, _ in scores]), abs=1e-6)
        assert section["share_below_half"] == np.mean([iou < 0.5 for iou, _, _ in scores])
        assert section["codes"]["distinct_tuples"] == len({tuple(codes) for _, _, codes in scores})


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize(
    "quantizer",
    [
        QuantizerConfig(kind="vq", num_codes=65_536, num_levels=1),
        QuantizerConfig(kind="fsq", num_codes=65_536, num_levels=1, grid=(16, 16, 16, 16)),
    ],
)
def test_codebooks_of_65536_codes_are_tokenized_measured_and_made_chats_of(quantizer, tmp_path):
    torch.manual_seed(0)
    tokenizer = MaskTokenizer(dataclasses.replace(MODELS["micro"], quantizer=quantizer))
    if quantizer.kind == "vq":  # z falls into the last codes alone
        tokenizer.quantizer.codebooks[:, :65_500] += 1000
    else:
        tokenizer.quantizer.centre.fill_(-10.0)
        tokenizer.quantizer.basis_in.fill_(1.0)
    tokenizer.save_pretrained(str(tmp_path / "tokenizer"))
    reader, uri = corpora.write_shapes(tmp_path / "shapes", num_images=3), str(tmp_path / "tokenizer")
    out = corpora.make_corpus(
        str(tmp_path / "out"), reader, uri, policy=POLICY, num_codes=65_536, num_levels=1
    )
    corpus = summary.read_corpus("big", out, shards.load_manifest(out))
    assert summary.codes_of(corpus.masks).max() > 32_767
    assert summary.metrics_of([corpus])["overall"]["masks"] > 0
    code = int(summary.codes_of(corpus.masks).max())
    mask = {"mask_id": "a", "image": 0, "codes": [code], "words": format_words([code], num_codes=65_536)}
    chat = dict.fromkeys(schema.CHAT_ROW.names, "") | {key: [] for key in ("tags", "images", "messages")}
    assert schema.table([chat | {"masks": [mask]}], schema.CHAT_ROW)["masks"].to_pylist()[0][0]["codes"] == [
        code
    ]
    for other in (ANSWER_ROW, TRAJECTORY_ROW):
        kind = other.field("truth_codes").type
        assert pa.array([[[code]]], kind).to_pylist() == [[[code]]]


def bucket_of(area_px: int) -> str:
    return next(name for name, end in regions.AREA_BUCKETS if area_px < end)


def test_area_buckets_divide_all_masks(measured):
    overall = summary.metrics_of(measured)["overall"]
    area_px = np.concatenate([summary.column(corpus.masks, "area_px") for corpus in measured])
    expected = {name: 0 for name, _ in regions.AREA_BUCKETS}
    for area in area_px:
        expected[bucket_of(int(area))] += 1
    assert {name: found["masks"] for name, found in overall["by_area"].items()} == expected
    assert sum(count > 0 for count in expected.values()) >= 2
    weighted = sum(f["masks"] * f["r_acc"] for f in overall["by_area"].values() if f["masks"])
    assert weighted / len(area_px) == pytest.approx(overall["r_acc"])


def test_all_masks_that_went_in_are_accounted_for(measured):
    counts = summary.total_counts(measured)
    assert counts["masks_filtered"] > 0
    assert counts["masks_in"] == (
        counts["masks_measured"] + counts["masks_rejected"] + counts["masks_filtered"]
    )
    assert counts["images_in"] == 9


def test_a_mask_that_is_unaccounted_for_is_a_defect(home, measured):
    totals = {**measured[0].manifest["totals"], "masks_in": 10**6}
    with pytest.raises(RuntimeError, match="1000000 masks went in, .* a defect of samtok"):
        summary.read_corpus("first", measured[0].out, {**measured[0].manifest, "totals": totals})


def test_a_corpus_without_usable_masks_is_refused(home):
    reader = corpora.write_shapes(home / "none", num_images=2)
    uri, out = str(home / "tokenizer"), str(home / "out" / "none")
    corpora.make_corpus(out, reader, uri, policy={"reconstruct": 1.0, "min_area_px": 10**6}, **SETTINGS)
    with pytest.raises(DataError, match="none has no mask that can be measured: .* Are source and images"):
        read(home, "none")


def test_scores_by_hand():
    found = summary.scores(np.array([0.2, 0.5, 0.8, 0.9]), np.array([0.0, 0.5, 0.5, 1.0]))
    assert found["r_acc"] == pytest.approx(0.6)
    assert found["boundary_iou"] == 0.5
    assert found["share_below_half"] == 0.25  # one half itself is not below
    assert found["iou_quantiles"]["p50"] == pytest.approx(0.65)
    assert summary.scores(np.zeros(0), np.zeros(0))["r_acc"] is None


def test_plain_tokenization_compares_no_boundaries(home):
    reader = corpora.write_shapes(home / "plain", num_images=1)
    out = Path(corpora.make_corpus(str(home / "out" / "plain"), reader, str(home / "tokenizer"), **SETTINGS))
    (record,) = shards.load_manifest(str(out))["shards"]
    (row,) = pq.read_table(out / record["data"]["file"]).to_pylist()
    assert row["masks"]
    assert all(mask["iou"] is not None and mask["boundary_iou"] is None for mask in row["masks"])


def test_without_the_box_prompt_a_corpus_gets_other_codes(home, tokenizer):
    from samtok.shapes import WorldConfig, make_scene

    scene = make_scene(0, 0, WorldConfig.square(64))
    dense = [thing.mask for thing in scene.objects]
    row = {"dataset": "d", "split": "s", "image_id": "1", "image_uri": "u", "height": 64, "width": 64}
    row |= {"annotations": [], "masks": []}
    for number, mask in enumerate(dense):
        entry = {"mask_id": str(number), "rle": masks.encode(mask), "label": None, "flags": []}
        row["masks"].append({**entry, "box_xyxy": None, "codes": [], "words": "", "area_px": 1})
    rows, size = schema.table([row], schema.CODE_ROW), tokenizer.config.mask_size
    images = Images(rows, scene.image[None], MaskPrompts.of(dense, size))
    features = tokenizer.features_of([scene.image])
    for box_prompt in (True, False):
        options = {**POLICY, "tokenizer_options": TokenizerOptions(box_prompt=box_prompt)}
        stage = TokenizeMasks(corpora.tokenization(str(home / "tokenizer"), **options))
        (coded,) = stage.begin(images)().to_pylist()
        expected = tokenizer.codes_of(features, dense, [0] * len(dense), box_prompt=box_prompt)
        assert [mask["codes"] for mask in coded["masks"]] == expected.tolist()


def test_the_table_of_masks_and_the_numbers_are_the_same_bytes_every_time(home, measured, tmp_path):
    metrics = {"measured_with": outcome.measured_with(measured[0]), **summary.metrics_of(measured)}
    contents = []
    for name in ("a", "b"):
        again = [read(home, corpus.name) for corpus in measured]
        outcome.write(str(tmp_path / name), again, metrics)
        contents.append([(tmp_path / name / f).read_bytes() for f in ("metrics.json", "masks.parquet")])
    assert contents[0] == contents[1]
    assert json.loads(contents[0][0])["measured_with"]["weights_sha256"] == "0" * 64
    lineage = json.loads((tmp_path / "a" / "lineage.json").read_text())
    assert set(lineage["corpora"]) == {"first", "second"} and "torch" in lineage["versions"]
    table = pq.read_table(tmp_path / "a" / "masks.parquet")
    assert table.schema.equals(schema.MASK_ROW)
    assert table["dataset"].to_pylist() == ["first"] * len(measured[0].masks) + ["second"] * len(
        measured[1].masks
    )


def test_every_mask_of_the_table_names_its_row(measured):
    for corpus in measured:
        image_ids = [
            image_id
            for record in corpus.manifest["shards"]
            for image_id in pq.read_table(Path(corpus.out) / record["data"]["file"])["image_id"].to_pylist()
        ]
        assert [image_ids[row] for row in corpus.rows] == corpus.masks["image_id"].to_pylist()


def test_metrics_for_tracking_are_flat_and_named_by_dataset_and_area(measured):
    found = summary.metrics_of(measured)
    flat = outcome.flat_metrics(found)
    assert flat["evaluation/r_acc"] == found["overall"]["r_acc"]
    assert flat["evaluation/dataset/second/r_acc"] == found["datasets"]["second"]["r_acc"]
    assert flat["evaluation/area/small/masks"] == found["overall"]["by_area"]["small"]["masks"]
    assert flat["evaluation/codes/level1_used"] == found["overall"]["codes"]["levels"][1]["used"]
    assert flat["evaluation/counts/masks_in"] == found["overall"]["counts"]["masks_in"]
    assert all(isinstance(value, int | float) for value in flat.values())
    assert "evaluation/dataset/first/area/large/r_acc" not in flat  # 64 px images have no large masks


def test_the_closing_table_has_a_line_per_dataset_and_one_for_all(measured):
    metrics = summary.metrics_of(measured)
    lines = aligned(summary.table_of(metrics))
    assert [line.split()[0] for line in lines] == ["dataset", "first", "second", "all"]
    assert len({len(line) for line in lines}) == 1
    assert f"{metrics['overall']['r_acc']:.4f}" in lines[-1]
    alone = summary.table_of(summary.metrics_of(measured[:1]))
    assert [row[0] for row in alone] == ["dataset", "first"]
    assert alone[1][-1] == "-"


@pytest.fixture(scope="module")
def page(home, measured, tokenizer):
    metrics = {"measured_with": outcome.measured_with(measured[0]), **summary.metrics_of(measured)}
    out = str(home / "out")
    where = f"{out}/report/index.html"
    report.write_report(out, measured, metrics, tokenizer=tokenizer, max_images=4, seed=0)
    return Path(where)


def test_the_report_has_its_pictures_beside_it_and_inside(page):
    assert sorted(path.name for path in page.parent.iterdir()) == [
        "code_usage.png",
        "contact_sheet.png",
        "index.html",
        "iou_area.png",
        "iou_histogram.png",
        "worst_masks.png",
    ]
    text = page.read_text()
    assert "<script" not in text
    assert text.count("<img") == text.count('src="data:image/') >= 3 + 3 * 4
    assert "does not add up" not in text and "are not those of the pictures" not in text


def test_the_worst_masks_of_each_bucket_are_shown(page, measured, tokenizer):
    worst = report.worst_masks(measured, 2, tokenizer, 0.0, np.random.default_rng(0))
    assert set(worst) == {"small", "medium", "large"}
    everything = [row for corpus in measured for row in corpus.masks.to_pylist()]
    for name, gallery in worst.items():
        ious = sorted(row["iou"] for row in everything if bucket_of(row["area_px"]) == name)
        assert [close_up.line.iou for close_up in gallery.worst] == pytest.approx(ious[:2])
    assert f"mask {worst['small'].worst[0].line.mask_id}," in page.read_text()


def test_images_are_drawn_from_all_corpora_alike(measured):
    rng = np.random.default_rng(0)
    drawn = [row["dataset"] for _ in range(60) for row in report.draw_rows(measured, 3, rng)]
    assert 0.5 < drawn.count("first") / len(drawn) < 0.85  # two thirds of the images
    assert len(report.draw_rows(measured, 99, rng)) == 9


@pytest.mark.slow
@pytest.mark.numerics
def test_an_image_that_is_gone_is_told_where_its_masks_are_missing(home, tokenizer):
    reader = corpora.write_shapes(home / "gone", num_images=2)
    out = str(home / "out" / "gone")
    corpora.make_corpus(out, reader, str(home / "tokenizer"), policy=POLICY, **SETTINGS)
    corpus = read(home, "gone")
    for path in (home / "gone" / "train").iterdir():
        path.unlink()
    metrics = {"measured_with": outcome.measured_with(corpus), **summary.metrics_of([corpus])}
    where = f"{out}/report/index.html"
    report.write_report(out, [corpus], metrics, tokenizer=tokenizer, max_images=6, seed=0)
    assert "can no longer be read, so their masks are missing" in Path(where).read_text()


def config(*texts: str, **changed) -> EvaluateTokenizerConfig:
    return EvaluateTokenizerConfig(corpora=texts, **{"out": "out", "tokenizer": "tiny", **changed})


COCO = "reader=coco,source=a.json,images=b"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ((COCO, COCO), "has 'coco' more than once; give each corpus a name of its own"),
        ((f"{COCO},dataset=a", f"{COCO},dataset=A"), "has 'a' more than once"),
        ((f"{COCO},dataset=..",), "cannot name a folder"),
        ((f"{COCO},dataset=a/b",), "cannot name a folder"),
        ((f"{COCO},dataset=report",), "cannot name a folder"),
        ((f"{COCO},weight=2",), "weight of coco has no meaning here"),
        (("reader=coco",), "source must be given"),
    ],
)
def test_corpora_that_cannot_be_told_apart_or_stored_are_refused(texts, message):
    with pytest.raises(ConfigError, match=message):
        prepare.specs_of(config(*texts))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"limit": 0}, "--limit must be >= 1"),
        ({"shard_rows": 0}, "--shard-rows must be >= 1"),
        ({"max_reject_rate": 1.5}, "--max-reject-rate must be in [0, 1]"),
        ({"report_images": -1}, "--report-images must be >= 0"),
        ({"tracking": "https://user:word@host"}, "must not hold a user or password"),
    ],
)
def test_wrong_values_are_refused_by_their_flag(changed, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        config(COCO, **changed)


def resolved(config: EvaluateTokenizerConfig, jobs) -> EvaluateTokenizerConfig:
    return prepare.resolved(config, next(iter(jobs.values())).config)


def test_every_corpus_is_reconstructed_in_a_folder_of_its_own(home, tmp_path):
    def text(name, *more):
        source = home / name / "annotations/instances_train.json"
        images_at = home / name / "train"
        return ",".join(["reader=coco", f"source={source}", f"images={images_at}", f"dataset={name}", *more])

    wanted = config(
        text("first", "limit=2"),
        text("second"),
        out=str(tmp_path),
        tokenizer=str(home / "tokenizer"),
        tokenizer_options=TokenizerOptions(box_prompt=False),
        limit=1,
        tracking="off",
    )
    jobs = prepare.tokenizations_of(wanted)
    assert [job.config.out for job in jobs.values()] == [str(tmp_path / name) for name in ("first", "second")]
    assert [job.config.limit for job in jobs.values()] == [2, 1]
    for job in jobs.values():
        assert job.settings["reconstruct"] == 1.0 and job.settings["boundary_iou"]
        assert job.settings["box_prompt"] is False
    again = resolved(wanted, jobs)
    assert resolved(again, prepare.tokenizations_of(again)) == again
    assert {n: j.settings for n, j in prepare.tokenizations_of(again).items()} == {
        name: job.settings for name, job in jobs.items()
    }


def test_presets_parse_and_the_paper_has_its_threshold():
    known = cli.parse(EvaluateTokenizerConfig, PRESETS, ["--preset", "smoke"], doc="")
    assert prepare.specs_of(known)[0].name == "shapes"
    flags = ["--preset", "paper", "--corpora", f"{COCO},dataset=entityseg", "--out", "o"]
    paper = cli.parse(EvaluateTokenizerConfig, PRESETS, [*flags, "--tokenizer", "t"], doc="")
    assert paper.tokenizer_options.threshold == 0.5 and paper.tokenizer_options.box_prompt
    with pytest.raises(SystemExit):
        cli.parse(EvaluateTokenizerConfig, PRESETS, flags, doc="")
