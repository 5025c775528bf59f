"""What computes rewards and the numbers of validations. Knows no Ray; one process can serve many samplers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.chats.corpus import answer_words
from pipelines.grpo.actors import Traced
from pipelines.grpo.config import GrpoConfig
from pipelines.grpo.groups import Group
from pipelines.grpo.reward.components import Scored, rewards_of, score
from samtok import masks
from samtok.metrics.text_masks import decode_unions
from samtok.rewards import read
from samtok.rewards.iou import NAME, IouReward

if TYPE_CHECKING:
    from pipelines.grpo.reward.encoded_images import ImageEncoder


@dataclass(frozen=True)
class ValidationRow:
    """One held-out prompt. Pixels are those of the unions of the likeliest response's masks and of the true
    ones; ``target_px`` is 0 where there is no target."""

    targets: int  # true masks
    greedy: Scored  # components and total of the likeliest response
    samples: tuple[Scored, ...]  # the same of sampled ones
    intersection_px: int
    predicted_px: int
    target_px: int


class Scorer(Traced):
    """Scores groups; for validation and ``--reward.iou`` the mask tokenizer is on the device."""

    def __init__(self, config: GrpoConfig, device: str = "cpu") -> None:
        reward = config.reward
        self.config, self.device = config, device
        self.weights = reward.weights
        self.rewards = rewards_of(reward)

    @cached_property
    def _decoder(self) -> IouReward:
        return IouReward.from_pretrained(self.config.tokenizer, device=self.device)

    @cached_property
    def _encoder(self) -> "ImageEncoder":
        from pipelines.grpo.reward.encoded_images import ImageEncoder  # loads torch

        limit, kept = self.config.max_image_pixels, self.config.reward.kept_images
        return ImageEncoder(self._decoder.tokenizer, max_pixels=limit, kept=kept)

    def score(self, *groups: Group) -> list[list[Scored]]:
        """Returns components and total of every response of every group."""
        return [self._score(group) for group in groups]

    def _score(self, group: Group, *, keep: bool = False) -> list[Scored]:
        responses, record = group.answers, group.question.record
        questions = [group.question] * len(responses)
        extra = None
        if self.config.reward.iou:
            features = partial(self._encoder.features_of, record, keep=keep)
            found = self._decoder.score_encoded(features, _size_of(record), questions, responses)
            extra = [{NAME: value} for value in found]
        return score(questions, responses, rewards=self.rewards, weights=self.weights, extra=extra)

    def validate(self, greedy: Sequence[Group], sampled: Sequence[Group]) -> list[ValidationRow]:
        """Returns what held-out prompts were answered, with the masks of the likeliest responses."""
        others = {group.index: group for group in sampled}
        return [self._row(group, others.get(group.index)) for group in greedy]

    def _row(self, group: Group, sampled: Group | None) -> ValidationRow:
        question = group.question
        predicted, target = self._masks(group)
        return ValidationRow(
            targets=len(question.truth),
            greedy=self._score(group, keep=True)[0],
            samples=tuple(self._score(sampled, keep=True)) if sampled is not None else (),
            intersection_px=int((predicted & target).sum()),
            predicted_px=int(predicted.sum()),
            target_px=int(target.sum()),
        )

    def _masks(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        """Returns the unions of the likeliest response's masks and of the true ones."""
        record, tokenizer = group.question.record, self._decoder.tokenizer
        size_hw = _size_of(record)
        words = read(group.question, group.answers[0]).words
        if words and record["images"]:
            features = self._encoder.features_of(record, keep=True)
            (predicted,) = decode_unions(tokenizer, features, [words], size_hw, threshold=0.0)
        else:
            predicted = np.zeros(size_hw, bool)
        return predicted, _true_union(record, group, size_hw)

    def without_pixels(self, *groups: Group) -> list[Group]:
        """Returns groups as the driver may have them."""
        return [replace(group, vision={}) for group in groups]


def _size_of(record: Mapping[str, Any]) -> tuple[int, int]:
    """Returns height and width of a record's first image, which ``load_images`` makes sure of; 0 for none."""
    image = next(iter(record["images"]), {"height": 0, "width": 0})
    return image["height"], image["width"]


def _true_union(record: Mapping[str, Any], group: Group, size_hw: tuple[int, int]) -> np.ndarray:
    """Returns the union of the true masks, by the mask ids of the last answer."""
    by_id = {mask["mask_id"]: mask for mask in record["masks"]}
    named = [message["mask_ids"] for message in record["messages"] if message["role"] == "assistant"][-1]
    assert len(answer_words(record)[-1]) == len(group.question.truth)
    union = np.zeros(size_hw, bool)
    for mask_id in named:
        rle = by_id[mask_id]["rle"]
        if rle is not None:
            union |= masks.decode(rle, height=size_hw[0], width=size_hw[1])
    return union
