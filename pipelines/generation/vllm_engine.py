"""Generating with vLLM in this process, behind the interface of ``engine.LearningEngine``.

vLLM's releases pin another torch than ours, so it lives in an environment of its own (``make setup-vllm``),
whose Python Ray gives to the processes that generate (``environment``). Tests run it with vLLM 0.32 on CPUs;
nothing here has run on a GPU.

- An engine has one GPU, or the CPU, and runs inside this process, so that weights reach it without being
  pickled. Several GPUs mean several processes, not tensor parallelism.
- Prompts go in as token ids with one place per image, which vLLM fills with as many as its image processor
  finds, and with the images. What it made of them must be our prompt, token by token.
- Only trained weights are published, so sleeping keeps the others in the host's memory (level 1).
- The grammar of mask words is a structural tag of each request.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText
from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]
from vllm.sampling_params import StructuredOutputsParams  # pyright: ignore[reportMissingImports]

from pipelines import env, storage
from pipelines.config import Precision
from pipelines.generation.config import EngineConfig
from pipelines.generation.engine import LearningEngine, Shown, check_prompt
from pipelines.training.engine import check_shapes
from pipelines.training.steps import mixed_seed
from samtok import folders
from samtok.errors import CheckpointError, ConfigError
from samtok.mllm.adapters import load_adapter
from samtok.mllm.chat import Encoded
from samtok.mllm.family import Adapter
from samtok.mllm.sampling import Sampled
from samtok.mllm.structural_tag import mask_word_tag

NEVER = -100.0
"""Added to the logits of tokens that must not come, the most that vLLM takes: a chance of e^-100 is none in
float32, so the probabilities of all others are those of the learner, who excludes these tokens."""

MAX_BIASED = 1024
"""Tokens that may have a bias in vLLM's newer runner (``MAX_NUM_LOGIT_BIAS_TOKENS``)."""

_CPU = {
    "enforce_eager": True,
    "kv_cache_memory_bytes": 1 << 29,
    "max_num_batched_tokens": 1 << 17,  # a step of seeded requests with more tokens crashes vLLM 0.32 there
    "max_num_seqs": 2048,
}
_MEMORY = ("weights", "kv_cache")


class VllmEngine(LearningEngine):
    """One vLLM in this process.

    Args:
        model: Folder or URI of the model.
        device: ``cuda`` or ``cpu``; vLLM itself takes what it was built for.
        learns, sleeps, max_prompt_tokens: As in ``engine.open_engine``.
    """

    wants_images = True
    batches = True

    def __init__(
        self,
        model: str,
        config: EngineConfig,
        *,
        device: torch.device | str,
        precision: Precision,
        grammar: bool,
        learns: bool = False,
        sleeps: bool = False,
        max_prompt_tokens: int | None = None,
    ) -> None:
        os.environ[env.VLLM_ENABLE_V1_MULTIPROCESSING] = "0"  # see above
        os.environ.setdefault(env.VLLM_LOGGING_LEVEL, "WARNING")
        self.max_images, self.max_new_tokens = config.max_images, config.max_new_tokens
        self.on_gpu = torch.device(device).type == "cuda"
        self.folder = storage.node_folder(folders.resolve(model))
        self.adapter = load_adapter(self.folder)
        with torch.device("meta"):
            known = AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
            empty: Any = AutoModelForImageTextToText.from_config(known)
        self.shapes = {name: value.shape for name, value in empty.state_dict().items()}
        self._bias = never_sampled(self.adapter, empty.get_input_embeddings().weight.shape[0])
        self._tag = json.dumps(mask_word_tag(self.adapter.word_ids, self.adapter.suppressed_ids))
        self._grammar = grammar
        self._whole: dict[str, Tensor] | None = None
        self._broken = False
        self._asleep: tuple[str, ...] = ()
        limit = None if max_prompt_tokens is None else max_prompt_tokens + config.max_new_tokens
        arguments: dict[str, Any] = dict(
            model=str(self.folder),
            trust_remote_code=False,
            dtype=precision,
            max_model_len=limit,
            limit_mm_per_prompt={"image": config.max_images, "video": 0},
            logprobs_mode="processed_logprobs",  # after temperature, bias and tag, as the learner
            generation_config="vllm",  # not the checkpoint's, whose filters would come in unasked
            **({"hf_overrides": {"head_dtype": "float32"}} if learns else {}),
            **({"gpu_memory_utilization": config.memory_share} if self.on_gpu else _CPU),
            **({"enable_sleep_mode": True} if sleeps and self.on_gpu else {}),
        )
        try:
            self.llm = LLM(**arguments)
            first: Any = {"prompt_token_ids": list(self.adapter.stop_ids[:1])}
            self.llm.generate([first], SamplingParams(max_tokens=1), use_tqdm=False)  # some kernels fail here
        except Exception as error:
            raise CheckpointError(
                f"vLLM cannot run {model} ({type(error).__name__}: {error}). Use the engine hf, or see what "
                "it asks for: on CPUs attention heads of 32 or more, on GPUs a memory share that fits."
            ) from error
        self.max_prompt_tokens = self.llm.llm_engine.model_config.max_model_len - config.max_new_tokens
        self._sleeps = sleeps and self.on_gpu

    def sample(
        self, prompts: Sequence[Encoded], *, responses: int, seed: int, temperature: float = 1.0
    ) -> list[list[Sampled]]:
        """Samples responses to each prompt. Equal seeds give equal responses up to vLLM's own rounding.

        Raises:
            ConfigError: vLLM reads a prompt differently.
            CheckpointError: A log-probability is no number.
        """
        params = [
            {
                "n": responses,
                "temperature": temperature,
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
        self._require_whole()
        self.wake()
        shared: dict[str, Any] = {
            "max_tokens": self.max_new_tokens,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": list(self.adapter.stop_ids),
            "ignore_eos": True,  # these and no other tokens end a response
            "logit_bias": dict(self._bias),
            "detokenize": False,  # the adapter reads them
            "skip_special_tokens": False,
        }
        if self._grammar:
            shared["structured_outputs"] = StructuredOutputsParams(structural_tag=self._tag)
        outputs = self.llm.generate(
            [engine_prompt(prompt) for prompt in prompts],
            [SamplingParams(**shared, **own) for own in params],
            use_tqdm=False,
        )
        for prompt, output in zip(prompts, outputs, strict=True):
            check_prompt(prompt, output.prompt_token_ids)
        return outputs

    # ---------------------------------------------------------------- weights and memory

    def load_weights(self, shapes: Mapping[str, torch.Size], weights: Iterable[tuple[str, Tensor]]) -> None:
        """Takes in trained weights, under the names that transformers has for them.

        What was computed with the old ones is forgotten: keys and values of prompts, and encoded images. If
        vLLM fails on the way, this engine generates nothing any more.
        """
        check_shapes(shapes, self.shapes)
        self._require_whole()
        if "weights" in self._asleep:
            self._wake(("weights",))
        self._broken = True
        try:
            self._load(weights)
        except Exception as error:
            raise CheckpointError(
                f"vLLM failed over weights of this {self.adapter.family} ({type(error).__name__}: {error}), "
                "so its model may be half of the old and half of the new. Use a release that loads "
                "checkpoints of the installed transformers, or the engine hf."
            ) from error
        self._broken = False
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.reset_encoder_cache()

    def _load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        if self.on_gpu:
            (loaded,) = self.llm.collective_rpc(load_into, args=(weights,))  # in this process, so not pickled
            if not loaded:
                raise ValueError("it took none of them")
            return
        if self._whole is None:  # on CPUs kernels pack weights, which can be replaced all together only
            self._whole = dict(self.adapter.load_model(self.folder).state_dict())
        self._whole |= tied(self._whole, {name: value.clone() for name, value in weights})
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(self._whole.items())})

    def _require_whole(self) -> None:
        if self._broken:
            raise CheckpointError("the model of vLLM is incomplete, since taking in weights failed before.")

    def sleep(self) -> None:
        """Moves the weights to the host and forgets keys and values."""
        if self._sleeps:
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


def load_into(worker: Any, weights: Iterable[tuple[str, Tensor]]) -> int:
    """Loads weights into the model of a vLLM worker; returns how many of its own it set."""
    return len(worker.model_runner.model.load_weights(weights))


def tied(whole: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a part of a model's weights, each also under the other names that its tensor has in ``whole``,
    as those of a tied head."""
    names: dict[int, list[str]] = {}
    for name, value in whole.items():
        names.setdefault(value.data_ptr(), []).append(name)
    return {other: value for name, value in state.items() for other in names[whole[name].data_ptr()]}


def never_sampled(adapter: Adapter, rows: int) -> dict[int, float]:
    """Returns the bias of tokens that the learner excludes: images' places and embedding rows without a
    token; raises ConfigError if there are more than vLLM takes."""
    unnamed = range(len(adapter.tokenizer), rows)
    bias = dict.fromkeys([*adapter.suppressed_ids, *unnamed], NEVER)
    if len(bias) > MAX_BIASED:
        raise ConfigError(
            f"the model has {len(unnamed)} embedding rows without a token, and vLLM excludes at most "
            f"{MAX_BIASED} tokens. Use the engine hf, or a model whose rows end with its tokens."
        )
    return bias


# ---------------------------------------------------------------- what goes in


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
            f"the prompt has {runs} runs of image tokens and came with {len(images)} images; "
            "engine.asked_of puts both together"
        )
    given: dict[str, Any] = {"prompt_token_ids": prompt.input_ids[~inside].tolist()}
    if images:
        given["multi_modal_data"] = {"image": [Image.fromarray(one) for one in images]}
    return given


# ---------------------------------------------------------------- what comes out


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
            "the engine hf."
        )
    return Sampled(np.array(ids, np.int32), log_probs, complete=bool(ids) and ids[-1] in adapter.stop_ids)
