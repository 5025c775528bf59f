"""A judge in this process: any language model of transformers with a chat template. It sees no images."""

import time
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from pipelines import storage
from pipelines.config import Precision
from pipelines.generation import models
from pipelines.judging.judge import Keep
from pipelines.judging.record import Judgement
from pipelines.shards import digest
from samtok import folders
from samtok.errors import CheckpointError
from samtok.metrics.judged import Ask, Sampling
from samtok.mllm.generation import until_stop


class LocalJudge:
    """Generates with a checkpoint, whose name and hash name the judge.

    Args:
        uri: Folder, URI or hub id.
        device: Such as ``cpu`` or ``cuda``.

    Raises:
        CheckpointError: It cannot be loaded, or its tokenizer has no chat template.
    """

    sees_images = False

    def __init__(self, uri: str, *, device: str, precision: Precision, batch_size: int) -> None:
        sha256 = models.sha256_of(uri)
        self.name = f"{uri.rstrip('/').rpartition('/')[2]}@{sha256[:12]}"
        self.requests, self.batch_size = 0, batch_size
        self.tokenizer, model = _loaded(uri, getattr(torch, precision))
        if self.tokenizer.chat_template is None:
            raise CheckpointError(f"the tokenizer of {uri} has no chat template, so it cannot be asked.")
        stops = model.generation_config.eos_token_id or self.tokenizer.eos_token_id
        self.stops: list[int] = stops if isinstance(stops, list) else [stops]
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(self.stops[0])
        self.model = model.to(device).eval()
        self.model.generation_config = GenerationConfig()  # nothing of it holds: no filters, no penalties

    def answer(self, asks: Sequence[Ask], keep: Keep) -> None:
        """As ``Backend.answer``."""
        for sampling, grouped in groupby(range(len(asks)), key=lambda place: asks[place].sampling):
            places = list(grouped)
            for start in range(0, len(places), self.batch_size):
                batch = places[start : start + self.batch_size]
                judged = self._batch([asks[place] for place in batch], sampling)
                for place, judgement in zip(batch, judged, strict=True):
                    keep(place, judgement)

    @torch.no_grad()
    def _batch(self, asks: Sequence[Ask], sampling: Sampling) -> list[Judgement]:
        began = time.monotonic()
        texts = [
            self.tokenizer.apply_chat_template(_turns(ask), tokenize=False, add_generation_prompt=True)
            for ask in asks
        ]
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        inputs = inputs.to(self.model.device)
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(digest(texts)[:15], 16))  # so that an equal batch draws equal replies
            rows = self.model.generate(**inputs, generation_config=self._settings(sampling))
        self.requests += len(asks)
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        replies = [until_stop(row, self.stops) for row in rows[:, inputs["input_ids"].shape[1] :].tolist()]
        seconds = (time.monotonic() - began) / len(asks)
        return [
            Judgement(
                reply=self.tokenizer.decode(reply, skip_special_tokens=True),
                finish="stop" if reply[-1] in self.stops else "length",
                seconds=seconds,
                tokens={"prompt": length, "completion": len(reply)},
            )
            for reply, length in zip(replies, lengths, strict=True)
        ]

    def _settings(self, sampling: Sampling) -> GenerationConfig:
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        return GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            eos_token_id=self.stops,
            pad_token_id=self.tokenizer.pad_token_id,
            **(drawn if sampling.temperature else {"do_sample": False}),
        )


def _loaded(uri: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Returns the tokenizer, which pads on the left, and the model."""
    folder = storage.node_folder(folders.resolve(uri, read=storage.read_bytes))
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, padding_side="left", local_files_only=True, trust_remote_code=False
        )
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, trust_remote_code=False
        )
        return tokenizer, model
    except Exception as error:  # each kind of a broken file has its own
        fault = f"{type(error).__name__}: {str(error)[:300]}"
        raise CheckpointError(f"{uri} cannot be loaded as a judge of texts ({fault}).") from error


def _turns(ask: Ask) -> list[dict[str, str]]:
    system = [] if ask.system is None else [{"role": "system", "content": ask.system}]
    return [*system, {"role": "user", "content": ask.prompt}]
