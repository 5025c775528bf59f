"""Responses of an earlier run in the place of sampling, to look for a fault in learning alone.

Prompts are read and encoded anew, responses are the tokens that were kept, rewards those that were given.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.chats.prompts import PromptSource, encode_prompt
from pipelines.chats.source import load_images
from pipelines.grpo.config import GrpoConfig
from pipelines.grpo.groups import Group, group_of
from pipelines.grpo.reward.components import Scored
from pipelines.grpo.trajectories import (
    by_prompt,
    components_of,
    read_trajectories,
    read_trajectory_file,
    steps_of,
)
from samtok import folders
from samtok.errors import ConfigError
from samtok.mllm.adapters import load_adapter
from samtok.mllm.family import Adapter
from samtok.mllm.sampling import Sampled


class Replay:
    """Reads kept steps, one after the other.

    Args:
        config: The run; ``--replay`` names a run's folder or one of its trajectory files.
        prompts: Of the run that kept them: same corpora, same seed.

    Raises:
        ConfigError: Nothing is kept there.
    """

    def __init__(self, config: GrpoConfig, prompts: PromptSource) -> None:
        assert config.replay is not None  # checked by the config
        self.config, self.prompts = config, prompts
        self.uri = config.replay
        self.files: list[int | None] = [None] if self.uri.endswith(".parquet") else [*steps_of(self.uri)]
        if not self.files:
            raise ConfigError(
                f"--replay {config.replay} keeps no trajectories: it has no trajectories/step-*.parquet. "
                "Give the --out of a run that had --trajectories-every above 0."
            )
        with storage.local_folder(folders.resolve(config.model, read=storage.read_bytes)) as folder:
            self.adapter: Adapter = load_adapter(folder)

    def __len__(self) -> int:
        return len(self.files)

    def step(self, number: int) -> list[tuple[Group, list[Scored]]]:
        """Returns the prompts of the kept step ``number`` of ``[0, len(self))``, with their rewards.

        Raises:
            ConfigError: The prompts are of another run.
            DataError: A prompt cannot be read any more.
        """
        kept = self.files[number]
        rows = read_trajectory_file(self.uri) if kept is None else read_trajectories(self.uri, kept)
        return [self._group(group) for group in by_prompt(rows)]

    def _group(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Group, list[Scored]]:
        draw = rows[0]["draw"]
        index = self.prompts.draws(draw, 1)[0]
        prompt = self.prompts.prompt(index)
        if prompt.row["sample_id"] != rows[0]["sample_id"]:
            raise ConfigError(
                f"--replay: draw {draw} was sample {rows[0]['sample_id']!r} there and is "
                f"{prompt.row['sample_id']!r} here. Give --chats, --prompts and --seed of that run "
                "(its config.json)."
            )
        encoded = encode_prompt(
            self.adapter,
            prompt,
            self.config.prompts.max_prompt_tokens,
            load_images(prompt.row, self.config.max_image_pixels),
        )
        group = group_of(
            *(draw, index, prompt, encoded, [_sampled(row) for row in rows]),
            texts=[row["text"] for row in rows],
            version=rows[0]["weight_version"],
        )
        return group, [Scored(components_of(row), row["reward"]) for row in rows]


def _sampled(row: Mapping[str, Any]) -> Sampled:
    return Sampled(
        np.array(row["token_ids"], np.int32), np.array(row["rollout_log_probs"], np.float32), row["complete"]
    )
