"""The stages as plain classes: bad input is listed with its reason, and counts always add up."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines import shards
from pipelines.ingestion.reader import Input
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.corpus import make_shapes
from pipelines.planning import plans
from pipelines.tokenization import chunks
from pipelines.tokenization.assemble import Assembler, summarize
from pipelines.tokenization.read import ReadImages
from pipelines.tokenization.stage import TokenizeMasks
from samtok.errors import CheckpointError, ConfigError, DataError
from samtok.model.tokenizer import MaskTokenizer
from samtok.shapes import WorldConfig, make_scene
from tests.bad_folder import IMAGE_REASONS, MASK_REASONS, READ_CORRECTLY, write_bad_folder
from tests.corpora import tokenization
from tests.readers import build_reader

SIZE = {"num_codes": 64, "num_levels": 2}
"""Fingerprint of the corpora here: what the manifest must know."""


@pytest.fixture(scope="module")
def tokenizer_uri(tmp_path_factory) -> str:
    torch.manual_seed(0)
    path = str(tmp_path_factory.mktemp("tokenizer") / "micro")
    MaskTokenizer.from_preset("micro").save_pretrained(path)
    return path


def tokenize(
    home: Path, source: Path, tokenizer_uri: str, *, chunk_rows: int = 3, policy: dict | None = None
):
    """Runs both stages over a COCO corpus without Ray; returns rows, rejects and counts of its one shard."""
    options = tokenization(tokenizer_uri, **(policy or {"reconstruct": 1.0}))
    reader = build_reader(
        "coco", source=str(source), images=str(source.parent / "images"), split="train", dataset="bad"
    )
    plan = plans.make_plan(
        str(home / "words"),
        {"num_codes": 64, "num_levels": 2},
        reader.inputs(),
        shard_rows=1000,
        chunk_rows=chunk_rows,
    )
    words = TokenizeMasks(options)
    read = ReadImages(plan, reader, words.tokenizer.config, options)
    assembler, whole = Assembler(), None
    for chunk in reversed(list(plan.chunks(0))):  # the order of arrival does not matter
        assert whole is None
        done = words(read(pa.table({k: [v] for k, v in chunk._asdict().items()})))
        whole = assembler.add(done.to_pylist()[0])
    assert whole is not None
    return plan, whole


@pytest.fixture(scope="module")
def bad(tmp_path_factory, tokenizer_uri):
    home = tmp_path_factory.mktemp("bad")
    return tokenize(home, write_bad_folder(home / "data"), tokenizer_uri)


def test_every_bad_record_is_listed_with_its_reason(bad):
    _, shard = bad
    rejects = shard.rejects.to_pylist()
    reasons = Counter(entry["reason"] for entry in rejects)
    assert reasons == Counter([*IMAGE_REASONS.values(), *MASK_REASONS.values()])
    assert all(entry["message"] and entry["stage"] in ("read", "decode") for entry in rejects)


def test_odd_but_readable_images_get_words(bad):
    _, shard = bad
    names = [Path(row["image_uri"]).name for row in shard.rows.to_pylist()]
    assert sorted(names) == sorted(READ_CORRECTLY)
    assert all(len(row["masks"]) == 1 for row in shard.rows.to_pylist())


def test_counts_add_up_over_bad_records(bad):
    plan, shard = bad
    counts = shard.counts
    assert counts["rows_in"] == plan.num_inputs == 10
    assert counts["rows_in"] == counts["rows_out"] + counts["rows_rejected"]
    assert counts["masks_in"] == 12
    assert counts["masks_in"] == counts["masks_out"] + counts["masks_rejected"] + counts["masks_filtered"]


def test_a_policy_filters_and_says_so(tmp_path, tokenizer_uri):
    source = write_bad_folder(tmp_path / "data")
    _, shard = tokenize(tmp_path, source, tokenizer_uri, policy={"min_area_px": 1000})
    assert shard.counts["masks_filtered"] == 5 and shard.counts["masks_out"] == 0
    assert {e["reason"] for e in shard.rejects.to_pylist() if e["stage"] == "filter"} == {"min_area"}
    assert len(shard.rows) == 5  # images stay: their annotations may say "no target"


def test_rows_do_not_depend_on_how_chunks_are_cut(tmp_path, tokenizer_uri):
    source = write_bad_folder(tmp_path / "data")
    _, a = tokenize(tmp_path / "a", source, tokenizer_uri, chunk_rows=1)
    _, b = tokenize(tmp_path / "b", source, tokenizer_uri, chunk_rows=100)
    codes_a, codes_b = ([[m["codes"] for m in r["masks"]] for r in t.rows.to_pylist()] for t in (a, b))
    assert codes_a == codes_b


def test_a_commit_record_summarises_its_shard(bad):
    plan, shard = bad
    summary = summarize(shard.rows, shard.rejects, shard.counts, num_codes=64, num_levels=2)
    used = [sum(count for _, count in level) for level in summary["code_histogram"]]
    assert used == [5, 5]
    assert sum(summary["iou_histogram"]) == summary["iou_count"] == 5
    assert summary["reject_reasons"]["read/rle_sum"] == 1 and "flags" not in summary
    record = shards.commit(plan, 0, rows=shard.rows, rejects=shard.rejects, summary=summary)
    again = shards.commit(plan, 0, rows=shard.rows, rejects=shard.rejects, summary=summary)
    assert record == again
    assert shards.committed(plan) == {0: shards.slim(record)}
    manifest = shards.finish(plan)
    assert manifest == shards.load_manifest(plan.out)
    assert json.loads(json.dumps(manifest))["totals"]["masks_in"] == 12


def test_an_empty_chunk_of_rejects_only_passes_through(tmp_path, tokenizer_uri):
    source = write_bad_folder(tmp_path / "data")
    body = json.loads(source.read_text())
    body["images"] = [i for i in body["images"] if i["file_name"] == "zero.jpg"]
    body["annotations"] = [a for a in body["annotations"] if a["image_id"] == body["images"][0]["id"]]
    source.write_text(json.dumps(body))
    _, shard = tokenize(tmp_path, source, tokenizer_uri)
    assert len(shard.rows) == 0 and len(shard.rejects) == 1
    summary = summarize(shard.rows, shard.rejects, shard.counts, num_codes=64, num_levels=2)
    assert summary["code_histogram"] == [[], []]


def test_replaced_weights_are_noticed(tokenizer_uri):
    with pytest.raises(CheckpointError, match="no longer those that the corpus was planned with"):
        TokenizeMasks(tokenization(tokenizer_uri), "0" * 64)


@pytest.mark.slow
@pytest.mark.numerics
def test_reconstructions_are_compared_on_the_grid_or_at_full_size(tmp_path, tokenizer_uri):
    source = tmp_path / "scenes"
    config = ShapesConfig(out=str(source), split="val", num_images=6, world=WorldConfig.square(64))
    assert make_shapes(config) == 0
    annotations = source / "annotations" / "instances_val.json"
    (source / "val").rename(source / "annotations" / "images")
    found = {}
    for name, policy in {
        "grid": {},
        "full": {"full_size_scores": True},
        "edge": {"boundary_iou": True},
    }.items():
        policy["reconstruct"] = 1.0
        _, shard = tokenize(tmp_path / name, annotations, tokenizer_uri, policy=policy)
        found[name] = [mask for row in shard.rows.to_pylist() for mask in row["masks"]]
    grid, full, edge = ([mask["iou"] for mask in found[name]] for name in found)
    assert full == edge and grid != full and np.abs(np.subtract(grid, full)).mean() < 0.1
    assert all(mask["boundary_iou"] is None for mask in found["grid"] + found["full"])
    assert all(0 <= mask["boundary_iou"] <= 1 for mask in found["edge"])
    assert [mask["codes"] for mask in found["grid"]] == [mask["codes"] for mask in found["full"]]


def test_a_chunk_that_comes_again_changes_nothing(bad):
    _, shard = bad
    assembler = Assembler()
    empty = {
        "rows": chunks.ipc(shard.rows),
        "rejects": chunks.ipc(shard.rejects),
        "counts": json.dumps(shard.counts),
    }
    chunk = {"shard": 0, "index": 0, "num_chunks": 1, **empty}
    assert assembler.add(chunk) is not None
    assert assembler.add(chunk) is None
    assert assembler.in_flight == 0


def test_a_plan_file_of_another_size_is_refused(bad):
    plan, _ = bad
    wrong = shards.Chunk(shard=0, index=0, num_chunks=4, num_inputs=2)
    with pytest.raises(DataError, match="has 3 images in chunk 0 of shard 0, expected 2"):
        shards.read_inputs(plan, wrong)


def test_two_jobs_that_plan_at_once_do_not_mix_their_files(tmp_path):
    inputs = [[Input(f"{name}{i}", "{}", 1) for i in range(2)] for name in "ab"]
    first = plans.make_plan(str(tmp_path), {"job": "a"}, inputs[0], shard_rows=2, chunk_rows=2)
    with pytest.raises(ConfigError, match="job: planned 'a', now 'b'"):
        plans.make_plan(str(tmp_path), {"job": "b"}, inputs[1], shard_rows=2, chunk_rows=2)
    (chunk,) = first.chunks(0)
    assert [item.key for item in shards.read_inputs(first, chunk)] == ["a0", "a1"]


@pytest.mark.parametrize("layout", ["nested", "tar"])
def test_sa1b_corpora_give_the_same_words_from_folders_and_archives(tmp_path, tokenizer_uri, layout):
    config = ShapesConfig(
        out=str(tmp_path / layout), format="sa1b", layout=layout, num_images=5, world=WorldConfig.square(64)
    )
    assert make_shapes(config) == 0
    reader = build_reader("sa1b", source=config.out, split="train", dataset="sa1b")
    plan = plans.make_plan(str(tmp_path / "out"), SIZE, reader.inputs(), shard_rows=9, chunk_rows=9)
    (chunk,) = plan.chunks(0)
    words = TokenizeMasks(tokenization(tokenizer_uri))
    read = ReadImages(plan, reader, words.tokenizer.config, tokenization())
    done = words(read(pa.table({k: [v] for k, v in chunk._asdict().items()}))).to_pylist()[0]
    rows = chunks.read_ipc(done["rows"]).to_pylist()
    expected = [make_scene(0, index, config.world) for index in range(5)]
    assert [len(row["masks"]) for row in rows] == [len(scene.objects) for scene in expected]
    areas = [[mask["area_px"] for mask in row["masks"]] for row in rows]
    assert areas == [[int(thing.mask.sum()) for thing in scene.objects] for scene in expected]
    assert ("#" in rows[0]["image_uri"]) == (layout == "tar")
