"""Sampling with vLLM, behind the interface of ``engines.RolloutEngine``. Not run yet: no GPU was at hand.

Its tests run the class on a recorded copy of the parts of vLLM 0.32 that it calls, so they test
what we pass in and how we read what comes back, and not vLLM. Whether both sides see one model shows in the
comparison of log-probabilities before the first step (``--checks.parity-limit``).

vLLM's releases pin another torch than ours, so it lives in an environment of its own, whose Python is
``--rollout.python``. That environment needs vLLM from 0.32 on, Ray and Python of the driver's versions, this
package without its dependencies (``pip install --no-deps``), and what its samplers import beside torch,
torchvision, transformers, numpy, pillow and pydantic, which come with vLLM: cloudpickle, jaxtyping, pyarrow,
pycocotools, s3fs, safetensors, scipy and tyro. It needs neither sam2 nor DeepSpeed nor MLflow.

- An engine has one GPU and runs inside the sampler's process, so that weights reach it without being pickled.
  Several GPUs mean several samplers (``--rollout.workers``), not tensor parallelism.
- Prompts go in as token ids with one place per image, which vLLM fills with as many as its image processor
  finds, and with the images. What it made of them must be our prompt, token by token.
- Only trained weights are published, so sleeping keeps the others in the host's memory (level 1).
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText
from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

from pipelines import env, storage
from pipelines.grpo.config import RolloutConfig
from pipelines.grpo.rollout.engines import RolloutEngine, Shown
from pipelines.training.engine import check_state
from pipelines.training.steps import mixed_seed
from samtok import folders
from samtok.errors import CheckpointError, ConfigError
from samtok.mllm.adapters import load_adapter
from samtok.mllm.chat import Encoded
from samtok.mllm.family import Adapter
from samtok.mllm.sampling import Sampled

NEVER = -100.0
"""Added to the logits of tokens that must not come, the most that vLLM takes: a chance of e^-100 is none in
float32, so the probabilities of all others are those of the learner, who excludes these tokens."""

_GPU_SHARE = 0.6  # of a GPU's memory; EasyR1's value, which leaves a learner room on the same GPU
_GRAMMAR = "samtok.mllm.vllm_grammar:MaskWordProcessor"
_MEMORY = ("weights", "kv_cache")


class VllmEngine(RolloutEngine):
    """One vLLM in this process, on one GPU.

    Args:
        model: Folder or URI of the model that the run starts from; its copy is kept as long as the engine.
        config: Of the sampling. ``attention`` and ``threads`` are transformers' matter and left alone.
    """

    wants_images = True

    def __init__(self, model: str, config: RolloutConfig) -> None:
        os.environ[env.VLLM_ENABLE_V1_MULTIPROCESSING] = "0"  # see above
        self.config = config
        self._kept = ExitStack()
        place = folders.resolve(model, read=storage.read_bytes)
        folder = self._kept.enter_context(storage.local_folder(place))
        self.adapter = load_adapter(folder)
        self.shapes = parameter_shapes(folder)
        rows = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config().vocab_size
        self._bias = never_sampled(self.adapter, rows)
        self.llm = LLM(**engine_arguments(folder, config))
        self._asleep: tuple[str, ...] = ()

    def sample(self, prompts: Sequence[Encoded], *, responses: int, seed: int) -> list[list[Sampled]]:
        """Samples responses to each prompt. Equal seeds give equal responses up to vLLM's own rounding.

        Raises:
            ConfigError: vLLM reads a prompt differently.
            CheckpointError: A log-probability is no number.
        """
        params = [
            {
                "n": responses,
                "temperature": self.config.temperature,
                "seed": mixed_seed(seed, place) % 2**31,  # response i has seed + i
                "logprobs": 0,  # of the sampled token only
            }
            for place in range(len(prompts))
        ]
        outputs = self._generate(prompts, params)
        ordered = [sorted(output.outputs, key=attrgetter("index")) for output in outputs]
        return [[read_response(one, self.adapter, self._bias) for one in group] for group in ordered]

    def greedy(self, prompts: Sequence[Encoded]) -> list[list[int]]:
        """As ``sample``, the likeliest response."""
        outputs = self._generate(prompts, [{"n": 1, "temperature": 0.0}] * len(prompts))
        return [list(output.outputs[0].token_ids) for output in outputs]

    def _generate(self, prompts: Sequence[Encoded], params: Sequence[Mapping[str, Any]]) -> list[Any]:
        if not prompts:
            return []
        self.wake()
        shared = response_arguments(self.adapter, self.config, self._bias)
        outputs = self.llm.generate(
            [engine_prompt(prompt) for prompt in prompts],
            [SamplingParams(**shared, **own) for own in params],
            use_tqdm=False,
        )
        for prompt, output in zip(prompts, outputs, strict=True):
            check_prompt(prompt, output.prompt_token_ids)
        return outputs

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Takes in trained weights, under the names that transformers has for them.

        What was computed with the old ones is forgotten: keys and values of prompts, and encoded images.
        """
        check_state(state, self.shapes)
        if "weights" in self._asleep:
            self._wake(("weights",))
        (loaded,) = self.llm.collective_rpc(load_into, args=(list(state.items()),))
        if state and not loaded:
            raise CheckpointError(
                f"vLLM took none of {len(state)} weights, such as {next(iter(state))}. Its model of this "
                f"{self.adapter.family} knows other names; use a release that loads checkpoints of the "
                "installed transformers, or --rollout.engine hf."
            )
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.reset_encoder_cache()

    def sleep(self) -> None:
        """Moves the weights to the host and forgets keys and values."""
        self.wake()  # one part may be awake
        self.llm.sleep(level=1)
        self._asleep = _MEMORY

    def wake(self) -> None:
        """Takes back what sleeps."""
        self._wake(self._asleep)

    def _wake(self, parts: tuple[str, ...]) -> None:
        if parts:
            self.llm.wake_up(tags=list(parts))
            self._asleep = tuple(part for part in self._asleep if part not in parts)


def load_into(worker: Any, weights: list[tuple[str, Tensor]]) -> int:
    """Loads weights into the model of a vLLM worker; returns how many of its own it set."""
    return len(worker.model_runner.model.load_weights(weights))


def parameter_shapes(folder: str | Path) -> dict[str, torch.Size]:
    """Returns the shapes of a checkpoint's weights under transformers' names, without reading them."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            AutoConfig.from_pretrained(folder, trust_remote_code=False)
        )
    return {name: value.shape for name, value in model.state_dict().items()}


def never_sampled(adapter: Adapter, rows: int) -> dict[int, float]:
    """Returns the bias of tokens that the learner excludes: images' places and embedding rows without a
    token."""
    unnamed = range(len(adapter.tokenizer), rows)
    return dict.fromkeys([*adapter.suppressed_ids, *unnamed], NEVER)


# ---------------------------------------------------------------- what goes in


def engine_arguments(folder: str | Path, config: RolloutConfig) -> dict[str, Any]:
    """Returns the arguments of ``vllm.LLM``."""
    arguments: dict[str, Any] = {
        "model": str(folder),
        "trust_remote_code": False,
        "dtype": config.precision,
        "tensor_parallel_size": 1,
        "gpu_memory_utilization": _GPU_SHARE,
        "enable_sleep_mode": True,
        "logprobs_mode": "processed_logprobs",  # after temperature and bias, as the learner computes them
        "generation_config": "vllm",  # not the checkpoint's, whose filters would come in unasked
    }
    if config.grammar:  # follows the newest token of each text, which overlapped steps do not know yet
        arguments |= {"logits_processors": [_GRAMMAR], "async_scheduling": False}
    return arguments


def response_arguments(adapter: Adapter, config: RolloutConfig, bias: Mapping[int, float]) -> dict[str, Any]:
    """Returns the arguments of ``vllm.SamplingParams`` that all requests share."""
    return {
        "max_tokens": config.max_new_tokens,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": list(adapter.stop_ids),
        "ignore_eos": True,  # these and no other tokens end a response
        "logit_bias": dict(bias),
        "detokenize": False,  # the adapter reads them
        "skip_special_tokens": False,
    }


def engine_prompt(prompt: Encoded) -> dict[str, Any]:
    """Returns a prompt as vLLM takes it: each image's run of tokens as one, and the images; raises ValueError
    if there are fewer or more runs than images."""
    image = prompt.mm_token_type_ids == 1
    inside = torch.zeros_like(image)
    inside[1:] = image[1:] & image[:-1]
    images = prompt.images if isinstance(prompt, Shown) else ()
    runs = int((image & ~inside).sum())
    if runs != len(images):
        raise ValueError(
            f"the prompt has {runs} runs of image tokens and came with {len(images)} images; samplers hand "
            "both to an engine that wants images"
        )
    given: dict[str, Any] = {"prompt_token_ids": prompt.input_ids[~inside].tolist()}
    if images:
        given["multi_modal_data"] = {"image": [Image.fromarray(one) for one in images]}
    return given


# ---------------------------------------------------------------- what comes out


def check_prompt(prompt: Encoded, seen: Sequence[int] | None) -> None:
    """Makes sure that vLLM read the prompt that the learner will read; raises ConfigError if it did not."""
    ours = prompt.input_ids.tolist()
    if list(seen or ()) != ours:
        raise ConfigError(
            f"vLLM read a prompt of {len(ours)} tokens as {len(seen or ())}, or as other ones, so samples "
            "would belong to another prompt than the learner's. Its image processor sizes images "
            "differently: give --rollout.python an environment with the driver's transformers, or use "
            "--rollout.engine hf."
        )


def read_response(completion: Any, adapter: Adapter, bias: Mapping[int, float]) -> Sampled:
    """Reads one of vLLM's completions; raises CheckpointError if a log-probability is no number, or a token
    came that must not."""
    ids = list(completion.token_ids)
    log_probs = np.array(
        [step[id_].logprob for step, id_ in zip(completion.logprobs, ids, strict=True)], np.float32
    )
    if not np.isfinite(log_probs).all() or any(id_ in bias for id_ in ids):
        raise CheckpointError(
            f"vLLM sampled tokens {ids[:8]}... with log-probabilities {log_probs[:8].tolist()}..., of which "
            "one is no number or one token is excluded. Its weights or its kernels are broken; compare with "
            "--rollout.engine hf."
        )
    return Sampled(np.array(ids, np.int32), log_probs, complete=bool(ids) and ids[-1] in adapter.stop_ids)
