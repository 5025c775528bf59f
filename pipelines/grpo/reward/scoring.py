"""What computes rewards and the numbers of validations. Knows no Ray; one process can serve many samplers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipelines.chats.corpus import answer_words
from pipelines.chats.source import load_images
from pipelines.grpo.actors import Traced
from pipelines.grpo.config import GrpoConfig
from pipelines.grpo.groups import Group
from pipelines.grpo.reward.components import Scored, rewards_of, score
from samtok import masks
from samtok.metrics.text_masks import decode_unions
from samtok.rewards import read
from samtok.rewards.iou import NAME, IouReward


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

    def score(self, *groups: Group) -> list[list[Scored]]:
        """Returns components and total of every response of every group."""
        return [self._score(group) for group in groups]

    def _score(self, group: Group) -> list[Scored]:
        responses = group.answers
        questions = [group.question] * len(responses)
        extra = None
        if self.config.reward.iou:
            image = load_images(dict(group.question.record), self.config.max_image_pixels)[0]
            extra = [{NAME: value} for value in self._decoder.score(image, questions, responses)]
        return score(questions, responses, rewards=self.rewards, weights=self.weights, extra=extra)

    @cached_property
    def _decoder(self) -> IouReward:
        return IouReward.from_pretrained(self.config.tokenizer, device=self.device)

    def validate(self, greedy: Sequence[Group], sampled: Sequence[Group]) -> list[ValidationRow]:
        """Returns what held-out prompts were answered, with the masks of the likeliest responses."""
        others = {group.index: group for group in sampled}
        return [self._row(group, others.get(group.index)) for group in greedy]

    def _row(self, group: Group, sampled: Group | None) -> ValidationRow:
        question = group.question
        predicted, target = self._masks(group)
        return ValidationRow(
            targets=len(question.truth),
            greedy=self._score(group)[0],
            samples=tuple(self._score(sampled)) if sampled is not None else (),
            intersection_px=int((predicted & target).sum()),
            predicted_px=int(predicted.sum()),
            target_px=int(target.sum()),
        )

    def _masks(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        """Returns the unions of the likeliest response's masks and of the true ones."""
        record = dict(group.question.record)
        image = load_images(record, self.config.max_image_pixels)[0]
        tokenizer = self._decoder.tokenizer
        words = read(group.question, group.answers[0]).words
        size_hw = (image.shape[0], image.shape[1])
        if words:
            features = tokenizer.features_of([image])
            predicted = decode_unions(tokenizer, features, [words], size_hw, threshold=0.0)[0]
        else:
            predicted = np.zeros(size_hw, bool)
        return predicted, _true_union(record, group, size_hw)


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
