"""What the driver does around training: checks, a dry run, progress lines. No Ray."""

import json

import pytest

from pipelines import rejects
from pipelines.tokenizer_training.config import SamplingConfig, ValidationConfig
from pipelines.tokenizer_training.job import train_tokenizer
from pipelines.tokenizer_training.run import progress_of as build_progress
from pipelines.training.config import EngineConfig
from pipelines.training.fit import Board
from pipelines.training.job import items_of
from pipelines.training.progress import Progress
from samtok.errors import ConfigError, DataError
from tests import corpora
from tests.training import record_of, short, task_for, train


class Log:
    """Stands where MLflow is and keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def history(self, rows) -> None:
        self.rows += rows


def step(number: int, **more: float) -> tuple[str, dict[str, float]]:
    row = {"step": number, "loss": 2.0 - number, "iou": 0.5, "masks": 20, "images": 8, "seconds": 0.5}
    return "step", row | {"skipped": 0.0, "masks_so_far": 20 * number} | more


def progress_of(tmp_path, clock: list[float]) -> Progress:
    return build_progress(short(tmp_path), Log(), clock=lambda: clock[0])  # type: ignore[arg-type]


def test_a_line_has_the_means_since_the_last_one_and_the_time_that_is_left(tmp_path, lines):
    clock = [0.0]
    progress = progress_of(tmp_path, clock)
    progress.handle([step(0)])
    assert lines == []  # five seconds have not passed
    clock[0] = 6.0
    progress.handle([step(1)])
    assert lines == ["step 2/12 loss 1.5 iou 0.5 | 40 masks/s, 5 s left"]
    progress.handle([step(number) for number in range(2, 12)])
    assert lines[-1].startswith("step 12/12") and lines[-1].endswith("0 s left") and len(lines) == 2


def test_steps_that_are_repeated_after_a_restart_are_logged_once(tmp_path, lines):
    progress = progress_of(tmp_path, [0.0])
    progress.handle(
        [step(0), step(1), step(2), ("resumed", {"step": 1, "masks_so_far": 20}), step(1), step(2), step(3)]
    )
    assert [number for number, _ in progress.tracker.rows] == [1, 2, 3, 4]
    assert progress.tracker.rows[0][1]["train/loss"] == 2.0
    assert progress.tracker.rows[0][1]["throughput/masks_per_s"] == 40
    assert "resumed at step 1/12" in lines


def test_a_run_that_was_resumed_by_another_driver_goes_on_in_the_log(tmp_path, lines):
    progress = progress_of(tmp_path, [0.0])
    progress.handle([("resumed", {"step": 8, "masks_so_far": 20}), step(8)])
    assert [number for number, _ in progress.tracker.rows] == [9]


def test_skipped_steps_are_shown_at_once(tmp_path, lines):
    progress_of(tmp_path, [0.0]).handle([step(3, skipped=1.0)])
    assert lines == ["step 3 was skipped: its loss or gradient is NaN or infinite"]


def test_the_board_hands_over_each_event_once_and_keeps_the_first_error():
    board = Board()
    board.post("step", {"step": 0})
    assert board.take() == [("step", {"step": 0})] and board.take() == []
    first = DataError("first")
    board.fail(first)
    board.fail(DataError("second"))
    assert board.failure() is first


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path, capsys):
    corpora.write_shapes(tmp_path / "shapes", num_images=10)
    source = tmp_path / "shapes" / "annotations" / "instances_train.json"
    spec = f"reader=coco,source={source},images={tmp_path}/shapes/train"
    config = short(
        tmp_path / "out",
        corpora=(spec,),
        validation=ValidationConfig(corpora=(spec,)),
        dry_run=True,
        workers=2,
    )
    assert train_tokenizer(config) == 0
    printed = capsys.readouterr().out
    assert "12 steps of 8 images and at most 32 masks; 2 workers with 4 images each" in printed
    assert "data      10 images, 9.60 epochs" in printed and "rq of 2 x 64, 128 words, 12.0 bits" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.numerics
def test_a_corpus_without_usable_masks_is_refused_with_a_remedy(tmp_path):
    corpora.write_shapes(tmp_path / "shapes", num_images=3)
    annotations = tmp_path / "shapes" / "annotations" / "instances_train.json"
    annotations.write_text(
        annotations.read_text().replace('"iscrowd":0', '"iscrowd":1').replace('"iscrowd": 0', '"iscrowd": 1')
    )
    spec = f"reader=coco,source={annotations},images={tmp_path}/shapes/train"
    config = short(tmp_path / "out", corpora=(spec,), validation=ValidationConfig(corpora=(spec,)))
    with pytest.raises(DataError, match=r"none of 17 images drawn|no usable mask"):
        train(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpora": ("reader=coco",)}, "--corpora"),
        (
            {"corpora": ("reader=sa1b,source=a,weight=1", "reader=sa1b,source=b,dataset=b")},
            "1 of 2 corpora have a weight",
        ),
        (
            {"validation": ValidationConfig(corpora=("reader=sa1b,source=v,weight=1",))},
            "--corpora sa1b has a weight",
        ),
        ({"engine": EngineConfig(deepspeed="no/such.json")}, "--deepspeed no/such.json"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_read(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    for name in "abtv":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").touch()  # an empty folder is as good as none, as on object storage
    known = {
        "corpora": ("reader=sa1b,source=t",),
        "validation": ValidationConfig(corpora=("reader=sa1b,source=v",)),
    }
    with pytest.raises(ConfigError, match=message):
        task_for(short(tmp_path / "out", **(known | changes)))


@pytest.mark.slow
@pytest.mark.numerics
def test_too_many_images_that_cannot_be_read_end_a_training_with_their_count(tmp_path, capfd):
    """34 of 64 images are gone; too few steps for the check during the run, so its end makes it."""
    corpora.write_shapes(tmp_path / "shapes", num_images=64)
    for image in sorted((tmp_path / "shapes" / "train").iterdir())[-34:]:
        image.unlink()
    source = tmp_path / "shapes" / "annotations" / "instances_train.json"
    spec = f"reader=coco,source={source},images={tmp_path}/shapes/train"
    held_out = ValidationConfig(corpora=(spec,), every=4, images=4, final_images=4)
    config = short(tmp_path / "out", corpora=(spec,), validation=held_out, steps=4, quantize_from=1.0)
    with pytest.raises(DataError, match=r"images cannot be used; --max-reject-rate allows 10.0%"):
        train_and_judge(config)
    with pytest.raises(DataError, match=r"of \d+ images that were drawn cannot be used.*image_missing"):
        train(short(tmp_path / "longer", corpora=(spec,), validation=held_out, steps=30, quantize_from=1.0))


def train_and_judge(config) -> None:
    """Trains, and compares the counts of the record as the end of the job does."""
    train(config)
    for items in items_of(record_of(config.out)):
        assert items.total > 0
        items.check(config.max_reject_rate, config.out)


@pytest.mark.slow
@pytest.mark.numerics
def test_masks_are_counted_once_per_image_with_the_reasons(tmp_path):
    """Every image is drawn four times. Annotations of the first are spoilt, one more only listing can see."""
    corpora.write_shapes(tmp_path / "shapes", num_images=8)
    source = tmp_path / "shapes" / "annotations" / "instances_train.json"
    body = json.loads(source.read_text())
    marks = body["annotations"]
    own = [mark for mark in marks if mark["image_id"] == marks[0]["image_id"]]
    own[0]["iscrowd"] = 1
    marks += [{**own[1], "id": 9001, "segmentation": [[1, 2]]}, {**own[1], "id": 9002, "image_id": 77}]
    source.write_text(json.dumps(body))
    spec = f"reader=coco,source={source},images={tmp_path}/shapes/train"
    sampling = SamplingConfig(images_per_step=8, min_area_px=1, masks_per_image=2)
    held_out = ValidationConfig(corpora=(spec,), every=4, images=2, final_images=2)
    options = {"validation": held_out, "steps": 4, "quantize_from": 1.0, "sampling": sampling}
    config = short(tmp_path / "out", corpora=(spec,), **options)
    train(config)
    record = record_of(config.out)
    assert record["items"]["images"]["total"] == 4 * 8
    assert record["items"]["masks"] == {"total": len(marks), "rejected": 2, "filtered": 1}
    assert record["rejects"] == {"polygon_invalid": 1} and record["filtered"] == {"crowd": 1}
    assert record["listed"]["rejects"] == {"unknown_image": 1}
    told = {one.reason: one for one in rejects.of_run(config.out, record)}
    assert set(told) == {"polygon_invalid", "unknown_image", "crowd"} and told["crowd"].filtered
    assert "annotation 9001 of image" in told["polygon_invalid"].example


def test_masks_that_are_filtered_are_counted_and_no_reject(tmp_path):
    sampling = SamplingConfig(images_per_step=8, min_area_px=300)
    config = short(tmp_path / "out", steps=4, quantize_from=1.0, sampling=sampling)
    train(config)
    images, masks = items_of(record_of(config.out))
    assert images.rejected == masks.rejected == 0 and masks.filtered > 0
    assert masks.total > masks.filtered and images.total >= 4 * 8
