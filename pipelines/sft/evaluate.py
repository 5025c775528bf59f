"""How well a model answers held-out chats while it is fine-tuned: the loss of true answers, and own answers.

``pipelines.mllm_evaluation`` measures finished models on whole benchmarks.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from pipelines.chats import corpus as chats
from pipelines.chats.source import ChatSource, Row, encode_row, load_images
from pipelines.chats.spec import names_apart
from pipelines.generation.engine import HfEngine
from pipelines.sft.config import TrainMllmConfig
from pipelines.sft.data import alike, micro_batches, unlearnt
from pipelines.training import world
from pipelines.training.draws import in_turn
from pipelines.training.engine import autocast
from samtok.errors import DataError
from samtok.mllm.chat import Encoded, Turn
from samtok.mllm.family import Adapter
from samtok.mllm.loss import answer_logits
from samtok.ranks import sum_over_ranks
from samtok.words import parse_words_lenient

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut(Encoded):
    """A held-out chat, and the number of its corpus."""

    source: int = 0


class Validator:
    """Measures the first chats of the held-out corpora, which are read once and kept.

    All calls are collective, and every worker makes the same number of forward passes, since weights may be
    spread over workers.

    Args:
        sources: Held-out corpora, taken from in turn; without any there is nothing to measure.
        alike: Whether the engine wants all workers to use the same parts of the model (from ZeRO-2 on).
    """

    def __init__(
        self,
        model: Any,
        adapter: Adapter,
        sources: Sequence[ChatSource],
        config: TrainMllmConfig,
        *,
        alike: bool = False,
    ) -> None:
        self.model, self.adapter, self.config, self.alike = model, adapter, config, alike
        uris = [source.corpus.uri for source in sources]
        named = dict(zip(uris, names_apart(uris), strict=True))
        self.names = [*dict.fromkeys(named.values())]  # a corpus that is given twice is one
        places = islice(in_turn(sources), config.validation.samples)
        self.rows = [
            (source.row(index), self.names.index(named[source.corpus.uri])) for source, index in places
        ]

    @torch.no_grad()  # in inference mode ZeRO-3 would keep weights that cannot be trained
    def measure(self) -> dict[str, float]:
        """Returns ``loss`` per learnt token, the shares of ``tokens`` and ``codes`` (words between start and
        end) that the model predicts after the true text before them, and the number of ``samples``; of
        several corpora ``loss/NAME`` of each."""
        was_training = self.model.training
        self.model.eval()
        sums = torch.zeros(6 + 2 * len(self.names), dtype=torch.float64, device=self.model.device)
        for batch in self._own:
            sums += self._sums(batch)
        self.model.train(was_training)
        loss, learnt, right, codes, right_codes, samples, *apart = sum_over_ranks(sums).tolist()
        by_corpus = zip(self.names, apart[::2], apart[1::2], strict=True)
        losses = {f"loss/{name}": own / tokens for name, own, tokens in by_corpus if tokens}
        return {
            "loss": loss / max(learnt, 1),
            "tokens": right / max(learnt, 1),
            "codes": right_codes / max(codes, 1),
            "samples": samples,
            **(losses if len(self.names) > 1 else {}),
        }

    @cached_property
    def _own(self) -> list[list[HeldOut]]:
        """Returns this worker's held-out chats in micro-batches, filled up with chats that do not count to
        the most of any."""
        unusable: list[str] = []
        share = self.rows[world.rank() :: world.size()]
        own = [s for held in share if (s := self._encode(*held, unusable)) is not None]
        if unusable:
            log.warning(
                "%d of %d held-out chats cannot be used and are left out; the first is %s",
                *(len(unusable), len(share), unusable[0]),
            )
        missing = max(world.gathered([len(own)])) - len(own)
        usable = own or [s for held in self.rows if (s := self._encode(*held, unusable)) is not None]
        if not usable:
            raise DataError(
                f"none of the first {len(self.rows)} chats of --validation.chats can be used. Are "
                "their images in place, and are they within --sampling.max-tokens?"
            )
        own += [unlearnt(usable[0])] * missing
        batches = micro_batches(own, self.config)
        return alike(batches, self.adapter) if self.alike else batches

    def _encode(self, row: Row, source: int, unusable: list[str]) -> HeldOut | None:
        """Encodes a sample, or says in the list why that is not possible."""
        try:
            most = self.config.sampling.max_tokens
            found = encode_row(self.adapter, row, max_tokens=most, max_pixels=self.config.max_image_pixels)
            return HeldOut(**vars(found), source=source)
        except DataError as error:
            unusable.append(f"{row['sample_id']}: {error}")
            return None

    def _sums(self, samples: Sequence[HeldOut]) -> torch.Tensor:
        batch = self.adapter.collate(samples, device=self.model.device)
        with autocast(self.model, self.config.precision):
            logits, targets = answer_logits(self.model, batch)
        each = cross_entropy(logits, targets, reduction="none")
        of = torch.tensor([n for s in samples for n in [s.source] * s.num_learnt], device=targets.device)
        apart = [part for n in range(len(self.names)) for part in (each[of == n].sum(), (of == n).sum())]
        right = logits.argmax(dim=-1) == targets
        codes = [id_ for level in self.adapter.word_ids.codes for id_ in level]
        is_code = torch.isin(targets, torch.tensor(codes, device=targets.device))
        counted = sum(sample.num_learnt > 0 for sample in samples)
        counts = [len(targets), right.sum(), is_code.sum(), (right & is_code).sum(), counted, *apart]
        return torch.stack(
            [torch.as_tensor(value, device=logits.device).double() for value in (each.sum(), *counts)]
        )

    def answers(self) -> list[dict[str, Any]]:
        """Returns the model's answers to the last questions of the first chats, beside the truth.

        Every entry has ``sample_id``, ``image`` (URI), ``size_hw``, ``question``, ``truth`` and ``answer``
        (texts), and the ``codes`` of both as lists of masks. With weights spread over workers all of them
        must ask the same, so a question that one of them cannot read is left out.
        """
        one = [row for row, _ in self.rows if len(row["images"]) == 1]
        asked = [row for row in one if row["messages"][-1]["role"] == "assistant"]
        asked = asked[: self.config.validation.generations]
        own = [self._prompt(row) for row in asked]
        lacking = world.gathered([i for i, prompt in enumerate(own) if prompt is None])
        kept = [row for i, row in enumerate(asked) if i not in lacking]
        prompts = [prompt for i, prompt in enumerate(own) if prompt is not None and i not in lacking]
        if not prompts:
            return []
        with autocast(self.model, self.config.precision):
            most = self.config.validation.max_new_tokens
            ids = HfEngine(self.adapter, self.model, max_new_tokens=most, grammar=True).greedy(prompts)
        return [self._answer(row, self.adapter.text_of(own)) for row, own in zip(kept, ids, strict=True)]

    def _prompt(self, row: Row) -> Encoded | None:
        try:
            return self.adapter.encode_prompt(_question(row), load_images(row, self.config.max_image_pixels))
        except DataError:
            return None

    def _answer(self, row: Row, answer: str) -> dict[str, Any]:
        vocabulary = self.adapter.vocabulary
        parsed = parse_words_lenient(answer, num_codes=vocabulary.num_codes, num_levels=vocabulary.num_levels)
        return {
            "sample_id": row["sample_id"],
            "image": row["images"][0]["uri"],
            "size_hw": [row["images"][0]["height"], row["images"][0]["width"]],
            "question": _question(row)[-1].text,
            "truth": chats.text_of(row["messages"][-1]),
            "answer": answer,
            "codes": {"truth": chats.answer_words(row)[-1], "answer": parsed.codes},
        }


def _question(row: Row) -> list[Turn]:
    """Returns a chat up to the last question."""
    return chats.turns_of(row)[:-1]
