"""TRL's GRPOTrainer as the other side of ``grpo.py``."""

from collections.abc import Sequence
from typing import Any

import datasets
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from pipelines.chats.prompts import Prompt, PromptSource
from pipelines.grpo.groups import Group
from pipelines.grpo.learn.learner import Micro
from tests.benchmarks.grpo_parts import LEARNING_RATE, Place, Split, Took, even_share


class Timed(GRPOTrainer):
    """TRL's trainer with clocks around its parts."""

    split: Split

    def _generate(self, prompts: list[Any]) -> Any:
        with self.split.part("rollout"):
            return super()._generate(prompts)

    def _calculate_rewards(self, *arguments: Any) -> Any:
        with self.split.part("reward"):
            return super()._calculate_rewards(*arguments)


class Clock(TrainerCallback):
    """Times an epoch without what comes before and after it."""

    def __init__(self) -> None:
        self.took, self._started = Took(0, 0), Took(0, 0)

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Starts the clock."""
        self._started = Took.now()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """Stops it."""
        self.took = Took.now().since(self._started)


def trl_trainer(place: Place, prompts: PromptSource, **told: Any) -> tuple[Timed, Clock]:
    """Returns TRL's trainer with our options where they have another default in TRL, and its clock."""
    options, clock, adapter = place.options, Clock(), place.adapter
    model = place.model()
    model.generation_config.eos_token_id = list(adapter.stop_ids)
    arguments = {
        "loss_type": "dapo",
        "scale_rewards": "group",
        "beta": 0.0,
        "epsilon": 0.2,
        "epsilon_high": 0.2,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "num_generations": options.group,
        "max_completion_length": options.new_tokens,
        "generation_kwargs": {"suppress_tokens": list(adapter.suppressed_ids)},
        "per_device_train_batch_size": place.responses,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 1,
        "max_steps": options.steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "shuffle_dataset": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "output_dir": str(place.folder / "unused"),
    }
    trainer = Timed(
        model=model,
        reward_funcs=_trl_reward,
        args=GRPOConfig(**arguments | told),
        train_dataset=_dataset(prompts, options.prompts * options.steps),
        processing_class=adapter.processor,
        callbacks=[clock],
    )
    trainer.split = Split()
    trainer.remove_callback(PrinterCallback)
    return trainer, clock


def _trl_reward(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    return [even_share(ids) for ids in completion_ids]


def _dataset(prompts: PromptSource, count: int) -> datasets.Dataset:
    """Returns the prompts of the first steps in our order; images are read and decoded when asked for."""
    asked = [prompts.prompt(index) for index in prompts.draws(0, count)]
    rows = [{"prompt": _messages(one), "image": one.row["images"][0]["uri"]} for one in asked]
    return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.text} for turn in prompt.turns]


def check_same_prompts(place: Place, trainer: Timed, groups: Sequence[Group]) -> None:
    """Makes sure that TRL's prompts are ours, token by token and pixel by pixel.

    Raises:
        ValueError: They are not.
    """
    asked = [dict(trainer.train_dataset[number]) for number in range(len(groups))]
    for row, group in zip(asked, groups, strict=True):
        image = row["image"]
        assert isinstance(image, Image.Image)
        text = [{"type": "image", "image": image}, {"type": "text", "text": row["prompt"][0]["content"]}]
        ids, _, fields = trainer._tokenize_prompts([[{"role": "user", "content": text}]])
        if ids[0] != group.input_ids.tolist():
            raise ValueError(f"TRL asks {ids[0]}, and we ask {group.input_ids.tolist()}")
        theirs = torch.as_tensor(fields["pixel_values"])
        pixels = place.adapter.vision_inputs([group.encoded])["pixel_values"]
        apart = (theirs - pixels).abs()
        if float(apart.max()) > 1e-5:
            raise ValueError(f"TRL's pixels differ from ours by up to {float(apart.max())}")


def trl_batch(place: Place, micro: Micro, old: torch.Tensor) -> dict[str, Any]:
    """Returns responses as TRL's loss takes them.

    Args:
        place: Whose adapter pads.
        micro: Prompts with their responses.
        old: Log-probability of each token of all responses before the step, one response after the other.
    """
    pad = place.adapter.pad_id
    asked = [one for one, group in zip(micro.prompts, micro.responses, strict=True) for _ in group]
    said = [torch.from_numpy(ids).long() for group in micro.responses for ids in group]
    completion_ids = _padded(said, pad, "right")
    completion_mask = _padded([torch.ones_like(ids) for ids in said], 0, "right")
    types = _padded([one.mm_token_type_ids for one in asked], 0, "left")
    return {
        "prompt_ids": _padded([one.input_ids for one in asked], pad, "left"),
        "prompt_mask": _padded([torch.ones_like(one.input_ids) for one in asked], 0, "left"),
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "advantages": micro.advantages,
        "num_items_in_batch": completion_mask.sum(),
        "old_per_token_logps": _padded(list(old.split([len(ids) for ids in said])), 0.0, "right"),
        "mm_token_type_ids": torch.cat([types, torch.zeros_like(completion_ids)], dim=1),
        "num_images": [1] * len(said),
        **place.adapter.vision_inputs(asked),
    }


def _padded(rows: Sequence[torch.Tensor], value: float, side: str) -> torch.Tensor:
    return pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)
