"""How masks are answered: as plain words, in a sentence, or as the authors' JSON.

    words      WORD, WORD
    sentence   These are WORD and WORD.
    json       a fenced JSON list of {"mask_2d": "WORD", "label": "..."}
    authors    the authors' question and their JSON

The authors' documents quote the words, their data script does not; ours are quoted, so the JSON is valid.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from pipelines.dialogues import templates
from pipelines.dialogues.config import Style
from pipelines.dialogues.pieces import Pieces, Ref, fill, foreign, joined, listed

STYLES = get_args(Style)


@dataclass(frozen=True)
class Voice:
    """The style of one chat, and where its choices come from."""

    style: str  # one of ``STYLES``
    rng: random.Random  # seeded by the sample, so a choice does not depend on other samples
    psg: Mapping[str, Any] = field(default_factory=dict)  # lists that scene graphs may use; maybe none
    wordings: int | None = None  # how many wordings of a question are in use, the first ones; None: all
    used: list[str] = field(default_factory=list)  # chosen templates in order, as res/3 or res/authors

    def question(self, task: str, **fields: str | Pieces) -> Pieces:
        """Asks a question of a task in this style."""
        if self.style == "authors" and task in templates.AUTHORS:
            self.used.append(f"{task}/authors")
            return fill(templates.AUTHORS[task], **fields)
        choices = templates.QUESTIONS[task][: self.wordings]
        index = self.rng.randrange(len(choices))
        self.used.append(f"{task}/{index}")
        hint = templates.HINTS["json" if self.style == "authors" else self.style]
        return joined([*fill(choices[index], **fields), hint if task in templates.HINTED else ""])

    def masks(self, labelled: Sequence[tuple[str, str]]) -> Pieces:
        """Answers with masks, or that there are none.

        Args:
            labelled: Mask and label, in the order of the answer; labels may be foreign text.
        """
        mask_ids = [mask_id for mask_id, _ in labelled]
        if self.style == "sentence":
            return self._sentence(mask_ids)
        if not mask_ids:
            return (templates.NO_TARGET,)
        return listed(mask_ids) if self.style == "words" else fenced([mask_entry(*one) for one in labelled])

    @property
    def is_json(self) -> bool:
        """Whether answers are JSON."""
        return self.style in ("json", "authors")

    def _sentence(self, mask_ids: Sequence[str]) -> Pieces:
        if not mask_ids:
            return (self.rng.choice(templates.NO_TARGET_SENTENCES),)
        choices = templates.ONE_SENTENCES if len(mask_ids) == 1 else templates.MANY_SENTENCES
        masks = listed(mask_ids, last=" and ")
        return fill(self.rng.choice(choices), masks=masks, count=str(len(mask_ids)))


def fenced(entries: Sequence[Pieces]) -> Pieces:
    """Returns a JSON list in a fence, one entry per line."""
    inside: list[str | Ref] = []
    for place, entry in enumerate(entries):
        inside += [",\n" if place else "", *entry]
    return joined(["```json\n[", *inside, "]\n```"])


def mask_entry(mask_id: str, label: str) -> Pieces:
    """Returns ``{"mask_2d": "WORD", "label": "..."}``."""
    return ('{"mask_2d": "', Ref(mask_id), f'", "label": {quoted(label)}}}')


def quoted(text: str) -> str:
    """Returns a foreign text as a JSON string."""
    return json.dumps(foreign(text, "a label"), ensure_ascii=False)
