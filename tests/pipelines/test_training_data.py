"""Steps as batches: the same masks in the same order, however they are split, prepared or resumed."""

import dataclasses
import os
import pickle
import signal
import threading
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pytest
import torch

from pipelines import schema, storage
from pipelines.tokenizer_training.batch import Batch, MicroBatch, build_batch, joined
from pipelines.tokenizer_training.config import (
    HELD_OUT_START,
    LossConfig,
    SamplingConfig,
    TrainTokenizerConfig,
    ValidationConfig,
)
from pipelines.tokenizer_training.data import (
    held_out_samples,
    mask_keys,
    step_loader,
    training_sources,
    validation_sources,
)
from pipelines.tokenizer_training.sources import Sample
from pipelines.training.config import TrainWorkerConfig
from pipelines.training.draws import Unusable
from pipelines.training.loader import StepLoader
from samtok import mask_resize
from samtok.config import PRESETS
from samtok.errors import ClusterError, ConfigError, DataError, SamtokError, StorageError
from samtok.masks import RunMask
from samtok.shapes import WorldConfig, make_scene

MODEL = PRESETS["micro"]


def config_of(
    *, images: int = 8, masks: int = 3, micro: int | None = None, **changes
) -> TrainTokenizerConfig:
    """A run on 64 px scenes; ``workers`` and ``loaders`` may be given by number."""
    worker = TrainWorkerConfig(loaders=changes.pop("loaders", 0), gpus=0)
    base = {
        "out": "unused",
        "model": "micro",
        "world": WorldConfig.square(64),
        "steps": 4,
        "sampling": SamplingConfig(images_per_step=images, masks_per_image=masks, min_area_px=1),
        "micro_batch": micro,
        "worker": worker,
    }
    return TrainTokenizerConfig(**(base | changes))


def loader_of(config: TrainTokenizerConfig, rank: int = 0, sources: tuple = ()) -> StepLoader:
    sources = sources or training_sources(config, None)
    return step_loader(sources, [None] * len(sources), config, MODEL, rank=rank)


def whole_steps(config: TrainTokenizerConfig, *, start: int = 0, sources: tuple = ()) -> list[MicroBatch]:
    """Returns the steps of a run, each put together over micro-batches and workers."""
    loaders = [loader_of(config, rank, sources).steps(start) for rank in range(config.workers)]
    found = []
    for parts in zip(*loaders, strict=True):
        micro = [one for part in parts for one in part]
        names, rejects = [n for one in micro for n in one.names], [r for one in micro for r in one.rejects]
        found.append(MicroBatch(joined([one.batch for one in micro]), names, rejects))
    return found


def assert_equal(got: list[MicroBatch], expected: list[MicroBatch]) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.names == b.names and a.rejects == b.rejects
        for name, value in vars(a.batch).items():
            assert torch.equal(value, getattr(b.batch, name)), name


@dataclass(frozen=True)
class Numbered:
    """Image i is gray of level i and has one mask, i + 1 pixels wide; the images in ``bad`` have none."""

    count: int
    bad: tuple[int, ...] = ()
    name: str = "numbered"

    def __len__(self) -> int:
        return self.count

    def read(self, index: int, *, most: int, draw: np.random.Generator) -> Sample:
        if index in self.bad:
            raise Unusable(schema.reject("train", self.name, str(index), "no_masks", f"{index} is bad"))
        mask = np.zeros((64, 64), dtype=bool)
        mask[:4, : index + 1] = True
        return Sample(f"{self.name}/{index}", np.full((64, 64, 3), index, np.uint8), [RunMask.of_dense(mask)])


@dataclass(frozen=True)
class Failing:
    """A source on a storage that fails, or in a process that is killed."""

    error: type[SamtokError] | None
    name: str = "failing"

    def __len__(self) -> int:
        return 100

    def read(self, index: int, *, most: int, draw: np.random.Generator) -> Sample:
        if self.error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        assert self.error is not None
        raise self.error("the disk is gone; mount it again")


# ---------------------------------------------------------------- batches


def test_an_image_of_another_size_is_resized_and_an_empty_mask_refused():
    image, mask, keys = np.zeros((50, 80, 3), np.uint8), np.ones((50, 80), dtype=bool), np.zeros(1, np.int64)
    assert build_batch([image], [RunMask.of_dense(mask)], [0], MODEL, keys=keys).pixels.shape == (
        1,
        64,
        64,
        3,
    )
    with pytest.raises(ValueError, match="empty"):
        build_batch([image], [RunMask.of_dense(~mask)], [0], MODEL, keys=keys)


def test_joined_batches_equal_one_that_was_built_at_once():
    scenes = [make_scene(1, i, WorldConfig.square(64)) for i in range(4)]
    images, masks = [s.image for s in scenes], [[RunMask.of_dense(o.mask) for o in s.objects] for s in scenes]
    owners = [[i] * len(own) for i, own in enumerate(masks)]
    keys = np.arange(sum(map(len, masks)))

    def built(*numbers: int) -> Batch:
        own = [m for i in numbers for m in masks[i]]
        index = [owner - numbers[0] for i in numbers for owner in owners[i]]
        first = sum(len(masks[i]) for i in range(numbers[0]))
        part = keys[first : first + len(own)]
        return build_batch([images[i] for i in numbers], own, index, MODEL, keys=part)

    whole, parts = built(0, 1, 2, 3), joined([built(0), built(1, 2), built(3)])
    for name, value in vars(whole).items():
        assert torch.equal(value, getattr(parts, name)), name


def test_keys_follow_from_seed_draw_and_place_alone():
    assert mask_keys(1, 5, 3).tolist() == mask_keys(1, 5, 8).tolist()[:3]
    keys = np.concatenate([mask_keys(seed, draw, 16) for seed in range(3) for draw in range(200)])
    assert len(set(keys.tolist())) == len(keys) and keys.min() >= 0
    ones = [(keys >> bit & 1).mean() for bit in range(63)]
    assert min(ones) > 0.45 and max(ones) < 0.55


# ---------------------------------------------------------------- order


def test_a_batch_holds_what_the_model_reads():
    (micro,) = next(loader_of(config_of(masks=2)).steps(0))
    batch = micro.batch
    assert batch.pixels.shape == (8, 64, 64, 3) and batch.pixels.dtype == torch.uint8
    count = len(batch)
    assert 8 <= count <= 16 and len(micro.names) == 8
    assert batch.prompts.shape == (count, 1, 16, 16) and batch.targets.shape == (count, 16, 16)
    assert batch.keys.dtype == torch.int64 and len(set(batch.keys.tolist())) == count
    assert batch.image_index.tolist() == sorted(batch.image_index.tolist())
    assert set(batch.image_index.tolist()) == set(range(8))


def test_targets_are_shares_of_cells_or_the_pixels_at_their_corners():
    (shares,) = next(loader_of(config_of()).steps(0))
    (pixels,) = next(loader_of(config_of(loss=LossConfig(targets="nearest"))).steps(0))
    assert set(pixels.batch.targets.unique().tolist()) == {0.0, 1.0}
    assert 0 < (shares.batch.targets % 1 > 0).float().mean() < 0.5
    assert torch.equal(pixels.batch.prompts, shares.batch.prompts)


def test_the_masks_of_a_batch_belong_to_its_images():
    config = config_of()
    micro = whole_steps(config)[1]
    for owner, target in zip(micro.batch.image_index.tolist(), micro.batch.targets, strict=True):
        scene = make_scene(config.seed, int(micro.names[owner].partition("/")[2]), config.world)
        assert torch.equal(micro.batch.pixels[owner], torch.from_numpy(scene.image))
        of_image = mask_resize.area([RunMask.of_dense(shape.mask) for shape in scene.objects], 16).dense()
        assert any(np.array_equal(target, one) for one in of_image)


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize(("workers", "micro"), [(1, 4), (1, 2), (1, 1), (2, None), (2, 1), (4, None), (4, 1)])
def test_any_workers_and_micro_batches_give_the_same_steps(workers, micro):
    split = config_of(workers=workers, micro=micro, steps=2)
    assert_equal(whole_steps(split), whole_steps(config_of(steps=2)))
    step = next(loader_of(split).steps(0))
    assert [len(one.names) for one in step] == [split.micro] * (8 // workers // split.micro)


def test_a_run_can_begin_at_any_step_and_ends_at_its_last():
    every = whole_steps(config_of())
    assert len(every) == 4
    for start in (1, 3, 4):
        assert_equal(whole_steps(config_of(), start=start), every[start:])


def test_steps_go_on_across_the_border_of_an_epoch():
    config = config_of(images=4, steps=5)
    steps = whole_steps(config, sources=(Numbered(10),))
    names = [name for step in steps for name in step.names]
    every = sorted(f"numbered/{i}" for i in range(10))
    assert sorted(names[:10]) == sorted(names[10:]) == every and names[:10] != names[10:]
    assert_equal(whole_steps(config, start=2, sources=(Numbered(10),)), steps[2:])
    keys = torch.cat([step.batch.keys for step in steps])
    assert len(keys.unique()) == 20  # an image that comes again gets other points


def test_another_seed_gives_other_images_and_keys():
    one, other = (whole_steps(config_of(seed=seed))[0].batch for seed in (1, 2))
    assert not torch.equal(one.pixels, other.pixels)
    assert not set(one.keys.tolist()) & set(other.keys.tolist())


def test_no_scene_is_seen_twice_unless_so_many_were_asked_for():
    names = [name for step in whole_steps(config_of()) for name in step.names]
    assert len(set(names)) == len(names) == 32
    few = [name for step in whole_steps(config_of(num_scenes=5)) for name in step.names]
    assert set(few) == {f"scenes/{i}" for i in range(5)}


def test_a_rank_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"rank must be in \[0, 2\), got 2"):
        loader_of(config_of(workers=2), rank=2)


def test_preparing_leaves_the_random_numbers_of_the_process_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(loader_of(config_of(steps=1)).steps(0))
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- images that cannot be used


def test_an_unusable_image_is_replaced_by_the_same_one_everywhere():
    sources = (Numbered(20, bad=(2, 3, 5, 7, 11, 13)),)
    config = config_of(steps=5)
    steps = whole_steps(config, sources=sources)
    assert_equal(whole_steps(config_of(steps=5, workers=4, micro=1), sources=sources), steps)
    assert_equal(whole_steps(config, start=3, sources=sources), steps[3:])
    good = {f"numbered/{i}" for i in range(20)} - {f"numbered/{i}" for i in sources[0].bad}
    assert all(set(step.names) <= good and len(step.names) == 8 for step in steps)
    rejects = [entry for step in steps for entry in step.rejects]
    assert {entry["row_id"] for entry in rejects} == {"2", "3", "5", "7", "11", "13"}


def test_a_replacement_is_of_the_same_corpus_and_leaves_other_draws_alone():
    clean, holes = Numbered(20), Numbered(20, bad=(4,))
    other = dataclasses.replace(clean, name="other")
    expected = whole_steps(config_of(steps=5), sources=(clean, other))
    steps = whole_steps(config_of(steps=5), sources=(holes, other))
    pairs = [
        (a, b) for x, y in zip(expected, steps, strict=True) for a, b in zip(x.names, y.names, strict=True)
    ]
    assert all(a == b for a, b in pairs if a != "numbered/4")
    replaced = [b for a, b in pairs if a == "numbered/4"]
    assert replaced and all(b.startswith("numbered/") and b != "numbered/4" for b in replaced)


def test_an_image_that_comes_again_gets_other_masks_or_another_replacement():
    few = config_of(images=8, masks=1, num_scenes=4, steps=6)
    steps = whole_steps(few)
    picked: dict[str, set[bytes]] = {name: set() for name in steps[0].names}
    for step in steps:
        for name, prompt in zip(step.names, step.batch.prompts, strict=True):
            picked[name].add(prompt.numpy().tobytes())
    assert sum(map(len, picked.values())) > len(picked) == 4
    steps = whole_steps(config_of(images=8, steps=10), sources=(Numbered(8, bad=(3,)),))
    replaced = {max(step.names, key=step.names.count) for step in steps}  # the one that is there twice
    assert len(replaced) > 2


def test_a_corpus_of_unusable_images_ends_the_run_with_reason_and_remedy():
    message = "none of 17 images drawn from corpus numbered.* numbered/.* is bad.*min-area-px"
    with pytest.raises(DataError, match=message):
        next(loader_of(config_of(), sources=(Numbered(40, bad=tuple(range(40))),)).steps(0))


def test_a_storage_that_fails_ends_the_run():
    with pytest.raises(StorageError, match="the disk is gone"):
        next(loader_of(config_of(), sources=(Failing(StorageError),)).steps(0))


# ---------------------------------------------------------------- loader processes


@pytest.mark.slow
def test_loader_processes_give_what_the_worker_itself_would():
    sources = (Numbered(30, bad=(1, 2)), *training_sources(config_of(), None))
    state = torch.get_rng_state()
    split = config_of(loaders=2, micro=2, steps=3)
    assert_equal(whole_steps(split, sources=sources), whole_steps(config_of(steps=3), sources=sources))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_an_error_of_a_loader_process_comes_out_as_it_is():
    with pytest.raises(storage.NotFoundError, match="^the disk is gone; mount it again$"):
        next(loader_of(config_of(loaders=1), sources=(Failing(storage.NotFoundError),)).steps(0))


@pytest.mark.parametrize("kind", [StorageError, storage.NotFoundError, DataError, ConfigError])
def test_errors_of_all_kinds_travel_between_processes(kind):
    error = pickle.loads(pickle.dumps(kind("the disk is gone; mount it again")))
    assert type(error) is kind and str(error) == "the disk is gone; mount it again"


@pytest.mark.slow
def test_a_loader_process_that_dies_is_not_bad_data():
    with pytest.raises(ClusterError, match="loader process of worker 0 died.*--worker.loaders"):
        next(loader_of(config_of(loaders=1), sources=(Failing(None),)).steps(0))


# ---------------------------------------------------------------- held-out images


def held_out(sources: tuple, count: int, *, rank: int = 0, world: int = 1, masks: int = 64) -> list[str]:
    options = {"masks_per_image": masks, "seed": 7, "rank": rank, "world": world}
    return [sample.name for sample in held_out_samples(sources, count, **options)]


def test_held_out_images_come_from_the_corpora_in_turn():
    sources = (Numbered(2, name="a"), Numbered(4, name="b"))
    every = ["a/0", "b/0", "a/1", "b/1", "b/2", "b/3"]
    assert held_out(sources, 100) == every
    assert held_out(sources, 3) == every[:3]


def test_held_out_images_are_shared_out_among_workers():
    sources = (Numbered(3, name="a"), Numbered(4, name="b"))
    parts = [held_out(sources, 6, rank=rank, world=3) for rank in range(3)]
    assert [part[i] for i in range(2) for part in parts] == held_out(sources, 6)


def test_unusable_held_out_images_are_left_out_and_logged_once(lines):
    assert held_out((Numbered(5, bad=(1, 3)),), 5) == [f"numbered/{i}" for i in (0, 2, 4)]
    (line,) = lines
    assert line.startswith("2 held-out images cannot be used") and "numbered/1: 1 is bad" in line


def test_held_out_masks_do_not_depend_on_the_number_of_workers():
    config = config_of()
    sources = validation_sources(config, None)
    options = {"masks_per_image": 1, "seed": 7}
    whole = list(held_out_samples(sources, 6, rank=0, world=1, **options))
    second = list(held_out_samples(sources, 6, rank=1, world=2, **options))
    for a, b in zip(whole[1::2], second, strict=True):
        assert a.name == b.name and np.array_equal(a.masks[0].starts, b.masks[0].starts)


def test_held_out_scenes_are_beyond_all_training_scenes():
    config = config_of(validation=ValidationConfig(images=3, final_images=5, seed=9))
    (source,) = validation_sources(config, None)
    assert len(source) == 5
    sample = source.read(0, most=64, draw=np.random.default_rng(0))
    assert sample.name == f"scenes/{HELD_OUT_START}"
    assert np.array_equal(sample.image, make_scene(9, HELD_OUT_START, config.world).image)
    (training,) = training_sources(config, None)
    assert len(training) == config.scenes_needed <= HELD_OUT_START


def test_held_out_masks_are_measured_however_training_picks():
    sampling = SamplingConfig(pick="area", drop_nested=True, min_area_px=5, skip=())
    (source,) = validation_sources(config_of(sampling=sampling), None)
    assert source.policy == SamplingConfig(min_area_px=5, skip=())


def test_a_scene_with_small_masks_only_is_unusable():
    config = config_of(sampling=SamplingConfig(min_area_px=64 * 64))
    (source,) = training_sources(config, None)
    with pytest.raises(Unusable, match=r"none of the \d+ masks of a scene can be trained on"):
        source.read(0, most=4, draw=np.random.default_rng(0))


def test_a_thread_that_is_no_longer_wanted_stops():
    steps = loader_of(config_of(micro=1)).steps(0)
    assert len(list(islice(steps, 1))) == 1
    steps.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("loader")]
