"""Generating with a running server of OpenAI's chat interface, behind the interface of ``engine.Engine``.

It has to serve the same model folder (vLLM: ``vllm serve FOLDER --generation-config vllm``). Requests have,
beside OpenAI's own fields, those of vLLM and SGLang that keep special tokens in the text
(``skip_special_tokens``) and that set the chat template (``chat_template_kwargs``), and vLLM's token ids
(``return_token_ids``) and structural tag. Without ids in the answer, texts are made tokens again, which gives
the same words.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.generation import models
from pipelines.generation.chat_server import ChatServer, image_part
from pipelines.generation.config import EngineConfig
from pipelines.generation.engine import Engine, Shown, check_prompt
from samtok import folders
from samtok.errors import DataError
from samtok.mllm.adapters import load_adapter
from samtok.mllm.chat import Encoded
from samtok.mllm.sampling import Sampled
from samtok.mllm.structural_tag import mask_word_tag

AT_ONCE = 16
"""Requests under way, which the server batches."""


class HttpEngine(Engine):
    """A server that answers.

    Args:
        model: Folder or URI of the model that it serves, whose vocabulary and chat format are read.
        grammar: Send the grammar of mask words along as a structural tag.

    Raises:
        ClusterError: It does not answer.
        ConfigError: It serves no model.
    """

    wants_images = True
    batches = True

    def __init__(self, model: str, config: EngineConfig, *, grammar: bool) -> None:
        assert config.url is not None
        models.files_of(folders.resolve(model))  # refuses what is no checkpoint
        self.adapter = load_adapter(storage.node_folder(folders.resolve(model)))
        self.server, self.max_images = ChatServer(config.url), config.max_images
        served = self.server.models()
        limit = served[0].get("max_model_len")  # vLLM says it
        self.max_prompt_tokens = limit - config.max_new_tokens if limit else sys.maxsize
        self.shared: dict[str, Any] = {
            "model": served[0]["id"],
            "max_tokens": config.max_new_tokens,
            "top_p": 1.0,
            "logprobs": True,
            "skip_special_tokens": False,
            "return_token_ids": True,
        }
        if self.adapter.template_options:
            self.shared["chat_template_kwargs"] = dict(self.adapter.template_options)
        if grammar:
            tag = mask_word_tag(self.adapter.word_ids, self.adapter.suppressed_ids)
            self.shared["structured_outputs"] = {"structural_tag": json.dumps(tag)}

    def sample(
        self, prompts: Sequence[Encoded], *, responses: int, seed: int, temperature: float = 1.0
    ) -> list[list[Sampled]]:
        """Samples responses to each prompt; how equal seeds repeat them is the server's matter."""
        bodies = [
            self._body(prompt, n=responses, temperature=temperature, seed=(seed + place) % 2**31)
            for place, prompt in enumerate(prompts)
        ]
        return [list(map(self._sampled, choices)) for choices in self._ask(prompts, bodies)]

    def greedy(self, prompts: Sequence[Encoded]) -> list[list[int]]:
        """As ``sample``, the likeliest response."""
        bodies = [self._body(prompt, n=1, temperature=0.0) for prompt in prompts]
        return [self._ids(choices[0]) for choices in self._ask(prompts, bodies)]

    def replies(
        self, prompts: Sequence[Encoded], *, temperature: float, seed: int
    ) -> list[list[int] | DataError]:
        """As ``Engine.replies``; a prompt that the server refuses costs no other."""

        def reply(place: int) -> list[int] | DataError:
            own = {"seed": (seed + place) % 2**31} if temperature else {}
            body = self._body(prompts[place], n=1, temperature=temperature, **own)
            try:
                return self._ids(self._choices(prompts[place], body)[0])
            except DataError as error:
                return error

        with ThreadPoolExecutor(AT_ONCE) as threads:
            return list(threads.map(reply, range(len(prompts))))

    def _body(self, prompt: Encoded, **own: Any) -> dict[str, Any]:
        assert isinstance(prompt, Shown)
        images = iter(prompt.images)
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else image_part(next(images))
                    for part in turn.parts
                ],
            }
            for turn in prompt.turns
        ]
        return {**self.shared, "messages": messages, **own}

    def _choices(self, prompt: Encoded, body: Mapping[str, Any]) -> list[Any]:
        answer = self.server.call("POST", "/v1/chat/completions", body)
        if answer.get("prompt_token_ids") is not None:
            check_prompt(prompt, answer["prompt_token_ids"])
        return sorted(answer["choices"], key=lambda choice: choice["index"])

    def _ask(self, prompts: Sequence[Encoded], bodies: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            return list(threads.map(self._choices, prompts, bodies))

    def _ids(self, choice: Mapping[str, Any]) -> list[int]:
        if choice.get("token_ids") is not None:
            return list(choice["token_ids"])
        text = choice["message"]["content"] or ""
        ids = self.adapter.tokenizer.encode(text, add_special_tokens=False)
        ended = choice.get("finish_reason") == "stop" and not set(ids[-1:]) & set(self.adapter.stop_ids)
        return [*ids, *self.adapter.stop_ids[:1]] if ended else ids

    def _sampled(self, choice: Mapping[str, Any]) -> Sampled:
        ids, told = self._ids(choice), (choice.get("logprobs") or {}).get("content") or []
        log_probs = np.full(len(ids), np.nan, np.float32)
        log_probs[: len(told)] = [one["logprob"] for one in told[: len(ids)]]
        complete = bool(set(ids[-1:]) & set(self.adapter.stop_ids))
        return Sampled(np.array(ids, np.int32), log_probs, complete)
