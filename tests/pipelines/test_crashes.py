"""A record whose reading raises anything, or kills its process, is one reject and ends no run."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines import schema
from pipelines.ingestion import apart
from pipelines.ingestion.image_source import read_image
from pipelines.ingestion.peek import peek
from pipelines.ingestion.reader import Input, read_record
from pipelines.tokenization.chunks import Images
from pipelines.tokenization.stage import TokenizeMasks
from pipelines.training.fit import Board
from samtok.errors import DataError
from samtok.model.prompts import MaskPrompts
from tests.bad_folder import HEIGHT, WIDTH, write_bad_folder
from tests.corpora import save_micro_tokenizer, tokenization
from tests.jobs import read_manifest, run_job
from tests.readers import build_reader

MARK = b"kills its decoder"
KILLER = f"""
import os, signal
try:
    from PIL import Image
except ImportError:
    Image = None

def open_or_die(file, *args, _open=Image and Image.open, **options):
    if {MARK!r} in file.getvalue():
        os.kill(os.getpid(), signal.SIGKILL)
    return _open(file, *args, **options)

if Image is not None:
    Image.open = open_or_die
"""
"""Stands for a decoder that a file crashes: no such file is known of the Pillow that is installed."""


def test_in_its_own_process_work_dies_alone_and_what_follows_is_done():
    with apart.in_own_process():
        with pytest.raises(DataError, match="x.png: reading it killed its process") as caught:
            apart.isolated(os.abort, "x.png")
        assert caught.value.reason == apart.CRASHED
        assert apart.isolated(partial(divmod, 7, 4), "y.png") == (1, 3)
        with pytest.raises(DataError, match="z.png: an unforeseen ZeroDivisionError"):
            apart.isolated(partial(divmod, 7, 0), "z.png")


def test_an_unforeseen_error_of_a_reader_is_a_reject_of_its_record(tmp_path: Path):
    """A payload that no reader of ours writes: reading it raises KeyError."""
    source = write_bad_folder(tmp_path)
    reader = build_reader("coco", source=str(source), images=str(tmp_path / "images"))
    found = read_record(reader, Input("7", json.dumps({"image": {}}), 3))
    assert found.row is None and found.num_masks_in == 3
    assert [entry["reason"] for entry in found.rejects] == [apart.CRASHED]


def test_an_image_of_more_pixels_than_allowed_is_rejected_before_it_is_decoded(tmp_path: Path):
    write_bad_folder(tmp_path)
    good = str(tmp_path / "images" / "good.png")
    read_image(good, expected_hw=(HEIGHT, WIDTH), max_pixels=HEIGHT * WIDTH)
    with pytest.raises(DataError, match=f"expected at most {HEIGHT * WIDTH - 1}") as caught:
        read_image(good, expected_hw=(HEIGHT, WIDTH), max_pixels=HEIGHT * WIDTH - 1)
    assert caught.value.reason == "image_bomb"


def test_a_look_at_a_corpus_decodes_no_image_of_more_pixels_than_allowed(tmp_path: Path):
    source = write_bad_folder(tmp_path)
    reader = build_reader("coco", source=str(source), images=str(tmp_path / "images"))
    found = peek(reader, max_pixels=HEIGHT * WIDTH - 1)
    assert any("expected at most" in fault for fault in found.faults)
    assert not any("expected at most" in fault for fault in peek(reader).faults)


class Fragile(TokenizeMasks):
    """Ends its process, or raises, over a batch with an image of one colour: 1 or 2."""

    def begin(self, images: Images) -> Callable[[], pa.Table]:
        colours = {int(one[0, 0, 0]) for one in images.pixels}
        if 1 in colours:
            os.abort()
        if 2 in colours:
            raise RuntimeError("a defect")
        return lambda: images.rows


@pytest.mark.parametrize("colour", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_an_image_over_which_the_tokenizer_crashes_is_a_reject(tmp_path: Path, colour: int):
    """Its actor died twice over the chunk, or it raises something that nobody foresaw."""
    stage = Fragile(tokenization(save_micro_tokenizer(tmp_path / "micro")))
    mask = {"mask_id": "0", "flags": [], "codes": [], "words": "", "area_px": 1}
    row = {"dataset": "d", "split": "s", "image_uri": "u", "height": 64, "width": 64, "annotations": []}
    rows = [{**row, "image_id": str(n), "masks": [mask] * 3} for n in range(4)]
    pixels, lost = np.zeros((4, 64, 64, 3), np.uint8), []
    pixels[2] = colour
    prompts = MaskPrompts.of([np.ones((64, 64), bool)] * 12, 16)
    images = Images(schema.table(rows, schema.CODE_ROW), pixels, prompts)
    with apart.in_own_process() if colour == 1 else contextlib.nullcontext():
        kept = list(stage._coded(images, lost))
    assert pa.concat_tables(kept)["image_id"].to_pylist() == ["0", "1", "3"]
    (reject,) = lost
    assert (reject["row_id"], reject["reason"], reject["num_masks"]) == ("2", apart.CRASHED, 3)


def test_lack_of_memory_is_no_fault_of_an_image():
    def exhausted() -> None:
        raise torch.OutOfMemoryError("on the device")

    with pytest.raises(torch.OutOfMemoryError):
        apart.isolated(exhausted, "x.png", mortal=(torch.OutOfMemoryError,))


def test_workers_that_were_started_twice_before_read_apart():
    """A loader that may have no children reads in the training process then."""
    board = Board()
    assert [board.begin() // 2 >= apart.CAREFUL_AFTER for _ in range(6)] == [False] * 4 + [True] * 2


# ---------------------------------------------------------------- with Ray


@pytest.fixture
def killer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Has every Python that starts crash over images with the mark in them."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(KILLER)
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    return path


IN_POOLS = """
import sys
from functools import partial

from pipelines import cluster, shard_pool
from pipelines.config import WorkerConfig
from pipelines.ingestion.image_source import read_image
from samtok.errors import DataError

def verdict(folder, shard):
    try:
        return str(read_image(f"{folder}/{shard}.png", expected_hw=(40, 56)).shape)
    except DataError as error:
        return error.reason

if __name__ == "__main__":
    worker, work = WorkerConfig(gpus=0), partial(verdict, sys.argv[1])
    with cluster.pool_session(2, worker):
        import ray
        print(*sorted(shard_pool.through_tasks(work, [0, 1], at_once=1, worker=worker, remedy="--workers")))
        lasting = {"max_restarts": shard_pool.MAX_RETRIES, "max_task_retries": shard_pool.MAX_RETRIES}
        actor = ray.remote(shard_pool.ShardWorker).options(**lasting).remote(lambda: verdict)
        print(*ray.get([actor.do.remote(sys.argv[1], shard) for shard in (0, 1)]))
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_image_that_kills_its_decoder_is_a_reject_in_every_pool(tmp_path: Path, killer: str):
    write_bad_folder(tmp_path)
    good = (tmp_path / "images" / "good.png").read_bytes()
    (tmp_path / "0.png").write_bytes(good)
    (tmp_path / "1.png").write_bytes(good + MARK)
    (tmp_path / "pools.py").write_text(IN_POOLS)
    command = [sys.executable, "pools.py", str(tmp_path)]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = [line for line in said.stdout.splitlines() if line.endswith(apart.CRASHED)]
    assert lines == [f"(40, 56, 3) {apart.CRASHED}"] * 2, said.stdout + said.stderr


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(400)
def test_images_that_kill_their_decoders_cost_themselves_and_not_the_run(tmp_path: Path, killer: str):
    source = write_bad_folder(tmp_path / "data")
    for name in ("good.png", "gray.png"):
        with (tmp_path / "data/images" / name).open("ab") as file:
            file.write(MARK)
    out, tokenizer = tmp_path / "words", save_micro_tokenizer(tmp_path / "micro")
    code, output = run_job(
        *("tokenize_corpus", "--corpus.reader", "coco", "--corpus.source", str(source)),
        *("--corpus.images", str(source.parent / "images"), "--out", str(out), "--tokenizer", tokenizer),
        *("--tracking", "off", "--report-images", "0", "--max-reject-rate", "0.9"),
        log=tmp_path / "log",
        env={"PYTHONPATH": killer},
    )
    assert code == 0, output[-3000:]
    assert "2 crashed_worker" in output
    assert read_manifest(out)["totals"]["rows_out"] == 3


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("loaders", ["0", "1"])
def test_an_image_that_kills_training_workers_is_replaced_from_the_third_start_on(
    tmp_path: Path, killer: str, loaders: str
):
    source = write_bad_folder(tmp_path / "data")
    with (tmp_path / "data/images/gray.png").open("ab") as file:
        file.write(MARK)
    corpus = f"reader=coco,source={source},images={source.parent / 'images'}"
    code, output = run_job(
        *("train_tokenizer", "--preset", "micro", "--corpora", corpus, "--out", str(tmp_path / "out")),
        *("--steps", "24", "--kmeans-samples", "80", "--sampling.images-per-step", "8", "--workers", "1"),
        *("--worker.loaders", loaders, "--checkpoints.every", "4", "--validation.every", "6"),
        *("--validation.corpora", corpus, "--validation.images", "4", "--tracking", "off"),
        *("--max-reject-rate", "1"),
        log=tmp_path / "log",
        env={"PYTHONPATH": killer},
    )
    assert code == 0, output[-3000:]
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["rejects"][apart.CRASHED] >= 1
