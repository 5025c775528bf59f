"""How well a model answers held-out chats while it is fine-tuned: the loss of true answers, and own answers.

``pipelines.mllm_evaluation`` measures finished models on whole benchmarks.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from pipelines.dialogues import chats
from pipelines.sft.config import TrainMllmConfig
from pipelines.sft.data import ChatSource, Row, encode_row, load_images, micro_batches
from pipelines.sft.loop import autocast
from pipelines.training import world
from samtok.errors import DataError
from samtok.mllm.chat import Encoded, Turn
from samtok.mllm.family import Adapter
from samtok.mllm.generation import generate
from samtok.mllm.loss import answer_logits
from samtok.model.quantizer import sum_over_ranks
from samtok.words import parse_words_lenient


class Looks:
    """Looks at the first chats of the held-out corpora, which are read once and kept.

    All calls are collective, and every worker makes the same number of forward passes, since weights may be
    spread over workers.

    Args:
        model: The model.
        adapter: Its adapter.
        sources: Held-out corpora, taken from in turn; without any there is nothing to look at.
        config: The run.
    """

    def __init__(
        self, model: Any, adapter: Adapter, sources: Sequence[ChatSource], config: TrainMllmConfig
    ) -> None:
        self.model, self.adapter, self.config = model, adapter, config
        self.rows = _first_rows(sources, config.validation.samples)
        self._encoded: list[Encoded] | None = None

    @torch.inference_mode()
    def measure(self) -> dict[str, float]:
        """Returns ``loss`` per learnt token, the shares of ``tokens`` and ``codes`` (words between start and
        end) that the model would have said after the true text before them, and the number of ``samples``."""
        was_training = self.model.training
        self.model.eval()
        sums = torch.zeros(6, dtype=torch.float64, device=self.model.device)
        own = self._own()
        for batch in micro_batches(own, self.config.micro_samples) if own else []:
            sums += self._sums(batch)
        self.model.train(was_training)
        loss, learnt, right, codes, right_codes, samples = sum_over_ranks(sums).tolist()
        return {
            "loss": loss / max(learnt, 1),
            "tokens": right / max(learnt, 1),
            "codes": right_codes / max(codes, 1),
            "samples": samples,
        }

    def _own(self) -> list[Encoded]:
        """Returns this worker's held-out chats, as many as every other worker has."""
        if self._encoded is None:
            usable = [sample for row in self.rows if (sample := self._encode(row)) is not None]
            even = len(usable) // world.size() * world.size()
            self._encoded = usable[world.rank() : even : world.size()]
        return self._encoded

    def _encode(self, row: Row) -> Encoded | None:
        try:
            return encode_row(self.adapter, row, max_tokens=self.config.sampling.max_tokens)
        except DataError:
            return None

    def _sums(self, samples: Sequence[Encoded]) -> torch.Tensor:
        batch = {name: value.to(self.model.device) for name, value in self.adapter.collate(samples).items()}
        with autocast(self.model, self.config.engine.precision):
            logits, targets = answer_logits(self.model, batch)
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        right = logits.argmax(dim=-1) == targets
        codes = [id_ for level in self.adapter.word_ids.codes for id_ in level]
        is_code = torch.isin(targets, torch.tensor(codes, device=targets.device))
        counts = [len(targets), right.sum(), is_code.sum(), (right & is_code).sum(), len(samples)]
        return torch.stack(
            [torch.as_tensor(value, device=logits.device).double() for value in (loss, *counts)]
        )

    def answers(self) -> list[dict[str, Any]]:
        """Returns what the model says to the last questions of the first chats, beside the truth.

        Every entry has ``sample_id``, ``image`` (URI), ``size_hw``, ``question``, ``truth`` and ``answer``
        (texts), and the ``codes`` of both as lists of masks. With weights spread over workers all of them
        must ask the same.
        """
        asked = [row for row in self.rows if _asks_one_image(row)][: self.config.validation.generations]
        prompts, kept = [], []
        for row in asked:
            prompt = self._prompt(row)
            if prompt is not None:
                prompts.append(prompt)
                kept.append(row)
        if not prompts:
            return []
        with autocast(self.model, self.config.engine.precision):
            ids = generate(
                self.model, self.adapter, prompts, max_new_tokens=self.config.validation.max_new_tokens
            )
        return [self._told(row, self.adapter.text_of(said)) for row, said in zip(kept, ids, strict=True)]

    def _prompt(self, row: Row) -> Encoded | None:
        try:
            return self.adapter.encode_prompt(_question(row), load_images(row))
        except DataError:
            return None

    def _told(self, row: Row, answer: str) -> dict[str, Any]:
        vocabulary = self.adapter.vocabulary
        parsed = parse_words_lenient(answer, num_codes=vocabulary.num_codes, num_levels=vocabulary.num_levels)
        return {
            "sample_id": row["sample_id"],
            "image": row["images"][0]["uri"],
            "size_hw": [row["images"][0]["height"], row["images"][0]["width"]],
            "question": _question(row)[-1].text,
            "truth": chats.text_of(row["messages"][-1]),
            "answer": answer,
            "codes": {
                "truth": chats.answer_words(row)[-1],
                "answer": parsed.codes,
            },
        }


def _asks_one_image(row: Mapping[str, Any]) -> bool:
    return len(row["images"]) == 1 and row["messages"][-1]["role"] == "assistant"


def _question(row: Row) -> list[Turn]:
    """Returns a chat up to the last question."""
    return chats.turns_of(row)[:-1]


def _first_rows(sources: Sequence[ChatSource], count: int) -> list[Row]:
    """Returns the first samples, one of each source in turn."""
    longest = max(map(len, sources), default=0)
    pairs = ((source, index) for index in range(longest) for source in sources if index < len(source))
    return [source.row(index) for source, index in islice(pairs, count)]
