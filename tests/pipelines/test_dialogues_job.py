"""The job: corpora of words are checked, shards are written once, and a killed run is resumed."""

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.compose_dialogues import main
from pipelines import shards
from pipelines.chats.commit import Composed
from pipelines.chats.corpus import answer_words, load_chat_corpus, read_group_table, rows_of, text_of
from pipelines.chats.psg import PsgVocabulary
from pipelines.dialogues.compose import TASKS
from pipelines.dialogues.config import PRESETS, ComposeDialoguesConfig
from pipelines.dialogues.job import compose_dialogues
from pipelines.dialogues.prepare import Composition, prepare, slices
from pipelines.dialogues.run import make_chats
from pipelines.dialogues.style import STYLES
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.corpus import make_shapes
from pipelines.reports import chats as report
from samtok import masks
from samtok.errors import ConfigError, DataError
from samtok.shapes import WorldConfig
from samtok.words import parse_words
from tests.code_rows import NUM_CODES, WEIGHTS, annotation, code_mask, code_row, random_row, write_words
from tests.jobs import data_digests, job, read_manifest, run_job
from tests.readers import build_reader

EVERY_TASK = "res,gres=0.7,grounding,gcg,psg,instances,region_caption,region_qa,multi_round,dialogue"


def rows_like(count: int, *, first: int = 0) -> list[dict]:
    return [random_row(random.Random(seed), f"i{seed:04d}") for seed in range(first, first + count)]


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> str:
    """Words of 80 images in two shards, the first of which has two row groups."""
    return write_words(str(tmp_path_factory.mktemp("chats") / "words"), rows_like(80), shard_rows=70)


def config_of(out: Path, *words: str, **changed: object) -> ComposeDialoguesConfig:
    values = {"tasks": EVERY_TASK, "shard_rows": 64, "tracking": "off", "report_samples": 0}
    return ComposeDialoguesConfig(words=words, out=str(out), **(values | changed))


def compose(config: ComposeDialoguesConfig) -> dict:
    return done(prepare(config))


def done(job: Composition) -> dict:
    return make_chats(job, job.plan())[0]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory) -> str:
    """Chats of all tasks of these words, from an uninterrupted run."""
    out = tmp_path_factory.mktemp("chats") / "whole"
    compose(config_of(out, words))
    return str(out)


def test_everything_that_went_in_is_accounted_for(whole):
    totals = read_manifest(whole)["totals"]
    assert totals["rows_in"] == 80 and totals["rows_out"] > 70 and totals["inputs_in"] == 3
    ends = ("out", "rejected", "filtered", "thinned", "unused")
    for prefix in ("", *(f"{part.partition('=')[0]}/" for part in EVERY_TASK.split(","))):
        assert totals[f"{prefix}items_in"] == sum(totals.get(f"{prefix}items_{end}", 0) for end in ends) > 0
    corpus = load_chat_corpus(whole)
    rows = list(rows_of(corpus))
    assert len(rows) == corpus.num_samples == totals["samples_out"]
    assert len({row["sample_id"] for row in rows}) == len(rows)
    assert sum(row["task"] == "gcg" for row in rows) == totals["gcg/samples_out"]
    assert (corpus.num_codes, corpus.num_levels, corpus.weights_sha256) == (64, 2, WEIGHTS)


def test_rows_are_found_at_random_by_shard_and_row_group(whole):
    corpus = load_chat_corpus(whole)
    for shard, file in enumerate(corpus.shards):
        groups = range(-(-file.rows // 64))
        sizes = [read_group_table(corpus, shard=shard, group=group).num_rows for group in groups]
        assert sum(sizes) == file.rows and sizes[0] == min(64, file.rows)


def test_a_run_that_was_killed_ends_with_the_same_bytes(words, whole, tmp_path):
    job = prepare(config_of(tmp_path / "cut", words))
    parts = list(slices([shards.load_manifest(words)], shard_rows=64, limit=None))

    def dies(payload: dict, chats: Composed) -> None:
        if payload == dataclasses.asdict(parts[1]):
            raise KeyboardInterrupt
        job.take(payload, chats)

    with pytest.raises(KeyboardInterrupt):
        done(dataclasses.replace(job, take=dies))
    assert sorted(shards.committed(job.plan())) == [0]
    made: list[dict] = []
    resumed = done(dataclasses.replace(job, take=lambda *call: made.append(call[0]) or job.take(*call)))
    assert made == [dataclasses.asdict(part) for part in parts[1:3]]
    assert data_digests(resumed) == data_digests(read_manifest(whole))


def test_samples_do_not_depend_on_the_shards(words, tmp_path):
    rows = rows_like(80)
    other = write_words(str(tmp_path / "other"), rows[::-1], shard_rows=37)
    samples = []
    options = {"tasks": "gres=0.5,multi_round,psg", "turns_per_sample": 2, "styles": STYLES}
    for name, uri in (("a", words), ("b", other)):
        compose(config_of(tmp_path / name, uri, **options))
        found = rows_of(load_chat_corpus(str(tmp_path / name)))
        samples.append(sorted(found, key=lambda row: row["sample_id"]))
    assert samples[0] == samples[1]


def test_several_corpora_become_one_and_a_limit_holds_for_each(words, tmp_path):
    rows = [{**row, "dataset": "second"} for row in rows_like(10)]
    second = write_words(str(tmp_path / "second"), rows, dataset="second")
    manifest = compose(config_of(tmp_path / "chats", words, second, limit=72, tasks="res"))
    assert manifest["totals"]["rows_in"] == 82
    datasets = {row["dataset"] for row in rows_of(load_chat_corpus(str(tmp_path / "chats")))}
    assert datasets == {"made", "second"}


def test_slices_are_whole_row_groups_of_one_file():
    manifest = {
        "shards": [{"counts": {"rows_out": rows}, "data": {"file": f"f{rows}"}} for rows in (100, 0, 200)]
    }
    found = [
        (part.file, part.first_group, part.rows) for part in slices([manifest], shard_rows=128, limit=None)
    ]
    assert found == [("f100", 0, 100), ("f200", 0, 128), ("f200", 2, 72)]
    cut = [(part.file, part.rows) for part in slices([manifest, manifest], shard_rows=128, limit=110)]
    assert cut == [("f100", 100), ("f200", 10)] * 2


def test_words_of_another_tokenizer_are_refused(words, tmp_path):
    for name, changed in (("weights", {"weights_sha256": "00"}), ("unknown", {"weights_sha256": None})):
        other = write_words(str(tmp_path / name), rows_like(2), dataset="other", **changed)
        error, message = (
            (ConfigError, "of different tokenizers")
            if changed["weights_sha256"]
            else (DataError, "lacks weights_sha256 of its tokenizer")
        )
        with pytest.raises(error, match=message):
            prepare(config_of(tmp_path / "chats", words, other))


def test_corpora_that_cannot_be_composed_together_are_refused(words, tmp_path):
    with pytest.raises(ConfigError, match="both called made/train"):
        prepare(config_of(tmp_path / "chats", words, words))
    compose(config_of(tmp_path / "chats", words, limit=1))
    with pytest.raises(DataError, match="is a corpus of chat, expected one of words"):
        prepare(config_of(tmp_path / "again", str(tmp_path / "chats")))
    with pytest.raises(DataError, match="is a corpus of words, expected one of chats"):
        load_chat_corpus(words)
    with pytest.raises(ConfigError, match="seed: planned 0, now 1"):
        compose(config_of(tmp_path / "chats", words, limit=1, seed=1))


def test_a_least_iou_needs_the_iou_of_every_mask(words, tmp_path):
    with pytest.raises(ConfigError, match="has 0 of .* Tokenize it with --reconstruct 1"):
        prepare(config_of(tmp_path / "chats", words, min_iou=0.5))
    made = [code_mask(f"m{n}", (n, n), iou=n / 10, label="it") for n in range(10)]
    known = write_words(
        str(tmp_path / "known"), [code_row([mask], [], image_id=mask["mask_id"]) for mask in made]
    )
    totals = compose(config_of(tmp_path / "kept", known, tasks="instances", min_iou=0.45))["totals"]
    assert (totals["items_filtered"], totals["items_out"]) == (10, 10)


def test_nothing_to_ask_is_an_error_and_so_are_too_many_rejects(tmp_path, capsys):
    missing = annotation("a", "referring", ["gone"], text="it")
    uri = write_words(str(tmp_path / "words"), [code_row([], [missing])])
    config = config_of(tmp_path / "none", uri, tasks="psg")
    message = "--tasks psg found nothing to ask about 1 images with 1 annotations"
    with pytest.raises(ConfigError, match=message):
        compose(config)
    assert compose_dialogues(config_of(tmp_path / "bad", uri, tasks="gres")) == 3
    assert "none of the 1 items could be used" in capsys.readouterr().err
    (record,) = read_manifest(tmp_path / "bad")["shards"]
    (entry,) = pq.read_table(tmp_path / "bad" / record["rejects"]["file"]).to_pylist()
    assert (entry["stage"], entry["row_id"], entry["reason"]) == ("compose", "image", "missing_mask")
    assert record["reject_reasons"] == {"compose/missing_mask": 1}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"words": ()}, "give either --words"),
        ({"styles": ()}, "--styles must not be empty"),
        ({"shard_rows": 100}, "--shard-rows must be a multiple of 64, got 100"),
        ({"tasks": "gres,res=2"}, r"--tasks res must be in \(0, 1\], got 2"),
        ({"tasks": "chat"}, "'chat=1' is not key=value with a key of res, gres"),
        ({"tasks": ""}, "--tasks must not be empty"),
        ({"tasks": "gres,gres=0.5"}, "gres is given twice"),
    ],
)
def test_flags_that_cannot_work_are_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(PRESETS["smoke"], **changed)


def test_a_style_of_a_mixture_that_is_none_is_refused(words, tmp_path):
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text("datasets: [{dataset: a, tasks: gres, styles: proze}]")
    with pytest.raises(ConfigError, match="a has the style 'proze', expected some of words, sentence, json"):
        prepare(config_of(tmp_path / "chats", words, mixture=str(mixture)))


def test_the_lists_of_openpsgs_own_file_are_a_vocabulary(tmp_path):
    file = tmp_path / "psg.json"
    lists = {"thing_classes": ["dog"], "stuff_classes": ["grass"], "predicate_classes": ["on"]}
    file.write_text(json.dumps({"data": [], **lists}))
    assert PsgVocabulary.read(str(file)) == PsgVocabulary(("dog", "grass"), ("on",), ("grass",))


def test_a_psg_vocabulary_must_have_both_lists(words, tmp_path):
    (file := tmp_path / "psg.json").write_text('{"categories": ["cat"]}')
    with pytest.raises(ConfigError, match="--psg-vocabulary .* lists of texts categories and predicates"):
        prepare(config_of(tmp_path / "chats", words, psg_vocabulary=str(file)))
    file.write_text('{"categories": ["cat"], "predicates": ["on"]}')
    assert prepare(config_of(tmp_path / "chats", words, psg_vocabulary=str(file))).fingerprint[
        "psg_vocabulary"
    ]


def test_the_words_of_answers_are_listed_per_message(words, tmp_path):
    compose(config_of(tmp_path, words, tasks="gres", turns_per_sample=3))
    row = max(rows_of(load_chat_corpus(str(tmp_path))), key=lambda row: len(row["messages"]))
    assert [len(codes) for codes in answer_words(row)] == [len(m["mask_ids"]) for m in row["messages"][1::2]]
    with pytest.raises(DataError, match="names the mask .*, which it does not have"):
        answer_words({**row, "masks": []})


def test_the_report_draws_chats_of_all_tasks_and_says_which_images_are_gone(tmp_path):
    rows = rows_like(12)
    for row in rows[::2]:
        row["image_uri"] = str(tmp_path / f"{row['image_id']}.png")
        Image.fromarray(np.full((2, 2, 3), 90, np.uint8)).save(row["image_uri"])
    words = write_words(str(tmp_path / "words"), rows)
    compose(config_of(tmp_path / "chats", words, tasks=EVERY_TASK))
    corpus = load_chat_corpus(str(tmp_path / "chats"))
    drawn = report.drawn_at_random(corpus, 23, seed=0)
    assert {row["task"] for row in drawn} == TASKS.keys() and len(drawn) == 23
    assert len({row["sample_id"] for row in drawn}) == 23
    page = report.make_page(corpus, max_samples=23, seed=0)
    shown = sum(row["images"][0]["uri"].startswith(str(tmp_path)) for row in drawn)
    assert 0 < page.count("data:image/jpeg") == shown < 23
    assert page.count("The image cannot be shown") == 23 - shown
    assert 'class="chip"' in page and "mt_start" not in page


def test_a_dry_run_writes_nothing_and_a_config_repeats_a_run(words, tmp_path, capsys):
    out = tmp_path / "chats"
    flags = [
        "--words",
        words,
        "--out",
        str(out),
        "--tasks",
        "gres",
        "--shard-rows",
        "64",
        "--tracking",
        "off",
    ]
    assert main([*flags, "--dry-run"]) == 0 and not out.exists()
    assert "plan      3 shards" in capsys.readouterr().out
    assert main([*flags, "--limit", "3"]) == 0
    assert "images    3, 3 of them with chats" in capsys.readouterr().out
    assert main(["--config", str(out / "config.json"), "--dry-run"]) == 0
    assert "plan      1 inputs in 1 shards, 0 left" in capsys.readouterr().out
    assert (out / "report/index.html").exists()


def test_a_missing_corpus_is_refused_with_the_command_that_makes_it(tmp_path, capsys):
    missing, out = tmp_path / "none", tmp_path / "no"
    assert main(["--words", str(missing), "--out", str(out), "--tracking", "off"]) == 2
    assert (
        f"`python jobs/tokenize_corpus.py --preset smoke --out {missing}` makes one"
        in capsys.readouterr().err
    )
    assert not out.exists()


SHAPES = {  # what the synthetic corpus has in each published format, and where
    "coco": ("annotations/instances_train.json", "train", "instances"),
    "refer": ("grefs.json", "train", "res,gres,grounding,multi_round"),
    "granf": ("granf.json", "train", "gcg"),
    "psg": ("psg.json", "", "psg,multi_round,instances"),
    "dam": ("annotations.json", "", "region_caption"),
    "masks": ("masks/train", "train", "instances"),
    "labelme": ("train", "train", "instances,region_caption"),
    "gar": ("", None, "dialogue"),
    "segllm": ("mr_refcoco_train.json", "", "dialogue"),
}


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("kind", SHAPES)
def test_shapes_in_every_published_format_become_chats_with_the_right_words(kind, tmp_path):
    source, images, tasks = SHAPES[kind]
    world = WorldConfig.square(64)
    make_shapes(ShapesConfig(out=str(tmp_path), format=kind, num_images=5, world=world, image_format="png"))
    place = {} if images is None else {"images": str(tmp_path / images)}
    place |= {"mask_files": (f"refcoco={tmp_path}/instances.json",)} if kind == "segllm" else {}
    reader = build_reader(kind, source=str(tmp_path / source), split="train", dataset=kind, **place)
    rows = [_with_words(reader.read(item).row) for item in reader.inputs()]
    words = write_words(str(tmp_path / "words"), rows, dataset=kind)
    totals = compose(config_of(tmp_path / "chats", words, tasks=tasks, styles=STYLES))["totals"]
    assert totals["items_rejected"] == 0
    assert all(totals[f"{task}/samples_out"] for task in tasks.split(","))
    codes = {(row["image_id"], m["mask_id"]): tuple(m["codes"]) for row in rows for m in row["masks"]}
    for sample in rows_of(load_chat_corpus(str(tmp_path / "chats"))):
        for message in sample["messages"]:
            wanted = [codes[sample["image_id"], mask_id] for mask_id in message["mask_ids"]]
            assert parse_words(text_of(message), num_codes=NUM_CODES) == wanted


def _with_words(row: dict) -> dict:
    rng, size = random.Random(row["image_id"]), {"height": row["height"], "width": row["width"]}
    found = []
    for mask in row["masks"]:
        box = [float(side) for side in masks.box_xyxy(mask["rle"], **size) or (0, 0, 0, 0)]
        codes = (rng.randrange(NUM_CODES), rng.randrange(NUM_CODES))
        found.append(code_mask(**{**mask, "codes": codes, "box_xyxy": box}))
    return {**row, "masks": found}


@pytest.mark.slow
def test_ray_tasks_write_the_same_bytes_also_after_a_kill(words, whole, tmp_path):
    flags = ("--words", words, "--tasks", EVERY_TASK, "--shard-rows", "64", "--tracking", "off")
    flags = (*flags, "--report-samples", "0", "--out", str(tmp_path / "ray"), "--workers", "2")
    with job("compose_dialogues", *flags, log=tmp_path / "cut.log") as running:
        running.until(lambda: (tmp_path / "ray/plan.json").exists())
        running.kill()
    code, output = run_job("compose_dialogues", *flags, log=tmp_path / "ray.log")
    assert code == 0, output[-3000:]
    assert "chats     " in output and "multi_round" in output
    assert data_digests(read_manifest(tmp_path / "ray")) == data_digests(read_manifest(whole))
