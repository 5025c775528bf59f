"""Rewards and validations of pixels: images are encoded no more often than they have to be."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.chats.source import load_images
from pipelines.grpo.config import PromptValidationConfig, RewardConfig
from pipelines.grpo.groups import Group
from pipelines.grpo.reward.scoring import Scorer
from pipelines.grpo.trajectories import trajectory_rows, write_trajectories
from samtok import masks
from samtok.model.tokenizer import MaskTokenizer
from samtok.words import format_words
from tests.grpo import CODES, World, rolled
from tests.mllm_evaluations import NUM_CODES, without_image


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    """Three images with three questions each, in turn: about one square, both, and none."""
    return World(tmp_path_factory.mktemp("scoring"))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets one entry per image that is encoded."""
    calls: list[int] = []
    real = MaskTokenizer.features_of

    def counting(self, batch):
        calls.append(len(batch))
        return real(self, batch)

    monkeypatch.setattr(MaskTokenizer, "features_of", counting)
    return calls


def saying(groups: list[Group], *names: str) -> list[Group]:
    """The same groups, whose responses are these words."""
    text = "".join(format_words(CODES[name], num_codes=NUM_CODES) for name in names)
    return [dataclasses.replace(group, texts=(text,) * len(group.texts)) for group in groups]


def scorer(world: World, **reward) -> Scorer:
    place = world.home / "tokenizer"
    if not place.exists():
        torch.manual_seed(0)
        MaskTokenizer.from_preset("micro").save_pretrained(str(place))
    return Scorer(world.config(tokenizer=str(place), reward=RewardConfig(iou=True, **reward)))


def test_a_look_encodes_each_image_once_and_what_is_kept_never_again(world, encoded):
    look = world.config(validation=PromptValidationConfig(samples=2))
    greedy, sampled = world.sampler(look).validate([0, 3, 6])  # one of each image
    greedy, sampled = saying(greedy, "red"), saying(sampled, "red", "green")
    keeping = scorer(world, kept_images=2)
    first = keeping.validate(greedy, sampled)
    assert encoded == [1, 1, 1]  # for likeliest and sampled responses, their rewards and masks
    assert keeping.validate(greedy, sampled) == first
    assert encoded == [1] * 4  # two are kept
    assert scorer(world, kept_images=0).validate(greedy, sampled) == first
    assert encoded == [1] * 7
    assert any(row.predicted_px for row in first)
    assert scorer(world).validate(saying(greedy), []) and encoded == [1] * 7  # no words, nothing to decode


def test_the_masks_of_a_look_are_those_of_the_tokenizer(world):
    greedy, _ = world.sampler(world.config()).validate([1])
    judge = scorer(world)
    (row,) = judge.validate(saying(greedy, "red", "green"), [])
    record = dict(greedy[0].question.record)
    image = load_images(record)[0]
    decoded = judge._decoder.tokenizer.decode(image, np.array([CODES["red"], CODES["green"]]))
    union = decoded[0] | decoded[1]
    truth = np.zeros_like(union)
    for mask in record["masks"]:
        truth |= masks.decode(mask["rle"], height=union.shape[0], width=union.shape[1])
    assert (row.predicted_px, row.target_px) == (union.sum(), truth.sum())
    assert row.intersection_px == (union & truth).sum()
    assert row.greedy.components["iou"] == pytest.approx(masks.iou(union, truth))


def test_the_driver_gets_groups_without_pixels(world):
    groups = rolled(world.sampler(world.config()), 2)
    assert all(group.vision for group in groups)
    for group, told in zip(groups, scorer(world).without_pixels(*groups), strict=True):
        assert not told.vision and told.texts == group.texts and told.question is group.question


def test_a_chat_of_text_alone_is_scored_and_its_responses_are_kept(world, encoded):
    greedy, _ = world.sampler(world.config()).validate([2])  # a question without a target
    (group,) = greedy
    text = dataclasses.replace(group.question, record=without_image(dict(group.question.record)))
    groups = [dataclasses.replace(group, question=text)]
    for names, right in (("red",), 0.0), ((), 1.0):
        said = saying(groups, *names)
        (row,) = scorer(world).validate(said, [])
        assert (row.predicted_px, row.target_px) == (0, 0) and row.greedy.components["iou"] == right
        (kept,) = trajectory_rows(said[0], [row.greedy], np.zeros(1), np.ones(1, bool), step=0)
        where = write_trajectories(str(world.home / f"text-{right}"), 0, [kept])
        (read,) = pq.read_table(where).to_pylist()
        assert [read[name] for name in ("image_uri", "height", "width")] == [None] * 3
    assert not encoded
