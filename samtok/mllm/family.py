"""The base of all families of MLLMs: dialogues to token ids, batches, packed rows, and back to text.

A family is one file with a subclass of ``Adapter`` (``qwen.py``, ``perception_lm.py``) and an entry of
``registry.py``. An adapter holds the processor and no model, so loader processes can have one each. A
dialogue is written piece by piece: the text of a user is never searched for the place of an image, and every
answer begins at the token where generation begins. A checkpoint with another chat template is refused.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from samtok import words
from samtok.errors import CheckpointError, ConfigError, DataError
from samtok.mllm.chat import IGNORE, Encoded, Turn
from samtok.mllm.chat_template import rendered
from samtok.mllm.object_tokens import OBJECT_TOKENS
from samtok.mllm.pretrained import lacks_memory, read_model
from samtok.mllm.registry import family_of
from samtok.mllm.rows import check_rows
from samtok.mllm.vocab import MaskVocabulary

E = TypeVar("E", bound=Encoded)
Picture = Image.Image | np.ndarray
"""An RGB image: of PIL, or H x W x 3 uint8."""

_PROBE = "A question."
_PLAIN = np.full((56, 56, 3), 128, np.uint8)


class Adapter(ABC):
    """One family's way of turning dialogues into batches.

    Attributes:
        family: The ``model_type`` of its config.
        suppressed_ids: Tokens that are never generated: places of images and videos, and what surrounds them.
        object_tokens: ``OBJECT_TOKENS``, or none where the text tokenizer has no such tokens.
        stop_ids: Tokens that end an answer; the first is the one that training teaches.
        tokenizer_sha256: Of the mask tokenizer that the words belong to; None where it is not known.
        thinking: Whether the model was trained to think before it answers; saved with it.
    """

    family: ClassVar[str]
    end_of_turn: ClassVar[str]
    end_of_text: ClassVar[str]
    start_of_text: ClassVar[str] = ""
    media_tokens: ClassVar[tuple[str, ...]]
    image_token: ClassVar[str]
    template_options: ClassVar[Mapping[str, object]] = {}
    """What the checkpoint's chat template is given, so that answers begin as ``header`` says."""
    shares_images: ClassVar[bool] = False
    """Whether the model takes image features that were computed before, as ``mm_encoder_outputs``."""

    def __init__(
        self, processor: ProcessorMixin, vocabulary: MaskVocabulary, *, tokenizer_sha256: str | None = None
    ) -> None:
        self.processor = processor
        self.vocabulary = vocabulary
        self.tokenizer_sha256 = tokenizer_sha256
        self.thinking = False
        self.word_ids = vocabulary.check(self.tokenizer)
        known = self.tokenizer.get_vocab()  # built anew by each call
        self.object_tokens = OBJECT_TOKENS if known.keys() >= set(OBJECT_TOKENS) else ()
        self.suppressed_ids = tuple(self._id(token, known) for token in self.media_tokens)
        self.stop_ids = (self._id(self.end_of_turn, known), self._id(self.end_of_text, known))
        pad_id = self.tokenizer.pad_token_id
        self.pad_id = self.stop_ids[1] if pad_id is None else pad_id
        self._image_id = self._id(self.image_token, known)
        control = self._control_tokens()
        self._unread_ids = {self.pad_id, *(self._id(token, known) for token in control)}
        refused = [*control, *(token for token in OBJECT_TOKENS if not self.object_tokens)]
        self._refused = re.compile("|".join(map(re.escape, refused)))
        self._preface = self._read_preface()

    @property
    def needs_token_types(self) -> bool:
        """Whether a batch without ``mm_token_type_ids`` trains wrongly."""
        return family_of(self.family).mrope

    @property
    def tokenizer(self) -> Any:
        """The text tokenizer."""
        return self.processor.tokenizer

    @property
    def image_processor(self) -> Any:
        """The processor's part for images."""
        return self.processor.image_processor

    @abstractmethod
    def header(self, role: str) -> str:
        """Returns what stands before a turn's content."""

    @abstractmethod
    def after_turn(self) -> str:
        """Returns what stands between a turn's end token and the next header."""

    @abstractmethod
    def image_text(self) -> str:
        """Returns how an image is written, with one image token that stands for all of its."""

    @abstractmethod
    def vision_tensors(self, images: Sequence[np.ndarray]) -> tuple[dict[str, Tensor], list[int]]:
        """Returns the vision tensors of images, rows joined along the first axis, and tokens per image.

        ``pixel_values`` are uint8 of the size that the model sees, as ``normalized`` takes them.
        """

    @abstractmethod
    def normalized(self, pixels: UInt8[Tensor, "row ..."]) -> Float[Tensor, "row ..."]:
        """Returns the ``pixel_values`` of the image processor, bit for bit, on the device of the pixels."""

    @abstractmethod
    def freeze(self, model: PreTrainedModel, *, vision: bool, projector: bool, llm: bool) -> None:
        """Sets what is trained (True) and what is frozen; embeddings and head belong to the LLM."""

    def positions(self, sample: Encoded) -> Int[Tensor, "axis token"]:
        """Returns the positions of a dialogue for ``pack``: the text's, then those of the rotary embedding.

        Raises:
            ConfigError: The family has no packing that is known to be free of leaks.
        """
        raise ConfigError(
            f"packing is not available for {self.family}: no call is known to keep its dialogues apart. "
            "Leave packing off; batches by length cost little."
        )

    def encode(
        self, turns: Sequence[Turn], images: Sequence[Picture], *, max_tokens: int | None = None
    ) -> Encoded:
        """Turns a dialogue into token ids; the assistant's text and the end of its turns have a loss.

        Args:
            turns: The dialogue. Without a system turn it gets the one that the checkpoint's template states.
            max_tokens: The longest dialogue that is taken; nothing is ever cut.

        Raises:
            DataError: ``too_long``; ``media_token`` or ``control_token`` for text that holds a token of the
                chat format; ``object_token`` for one of ``OBJECT_TOKENS`` where the family has none;
                ``malformed_words``; ``text`` that is not Unicode; ``image``, ``image_index`` or ``processor``
                for an image that cannot be used.
        """
        pieces, order = self._pieces(turns, len(images))
        if turns[-1].role == "assistant":
            pieces.pop()  # what would lead to a next turn
        return self._encoded(pieces, [images[i] for i in order], max_tokens)

    def encode_prompt(self, turns: Sequence[Turn], images: Sequence[Picture]) -> Encoded:
        """Turns a dialogue that ends with a user into token ids up to where the assistant begins.

        Earlier answers are written as in ``encode``, and nothing is learnt.

        Raises:
            DataError: As ``encode``.
            ValueError: The last turn is the assistant's, so the answer would stand in the prompt.
        """
        pieces, order = self._pieces(turns, len(images))
        if turns[-1].role == "assistant":
            raise ValueError(f"a prompt must end before the assistant's turn, got {turns[-1].text[:60]!r}.")
        pieces[-1] = (pieces[-1][0] + self.header("assistant"), False)
        return self._encoded([(text, False) for text, _ in pieces], [images[i] for i in order], None)

    def text_of(self, ids: Sequence[int]) -> str:
        """Reads generated ids: all text, mask words and object tokens, no tokens of the chat format."""
        kept = [int(id_) for id_ in ids if int(id_) not in self._unread_ids]
        return self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _pieces(self, turns: Sequence[Turn], num_images: int) -> tuple[list[tuple[str, bool]], list[int]]:
        """Returns texts, each with whether it is learnt, and the images in the order of the text."""
        if not turns:
            raise ValueError("a dialogue needs at least one turn, got none.")
        pieces: list[tuple[str, bool]] = []
        order: list[int] = []
        prefix = self.start_of_text if turns[0].role == "system" else self._preface
        for turn in turns:
            prefix += self.header(turn.role)
            content = "".join(self._part(part, turn, num_images, order) for part in _joined(turn.parts))
            if turn.role == "assistant":
                pieces += [(prefix, False), (content + self.end_of_turn, turn.learnt)]
                prefix = self.after_turn()
            else:
                prefix += content + self.end_of_turn + self.after_turn()
        return [*pieces, (prefix, False)], order

    def _part(self, part: str | int, turn: Turn, num_images: int, order: list[int]) -> str:
        if isinstance(part, str):
            self._check_text(part)
            return part
        if turn.role != "user" or not 0 <= part < num_images:
            raise DataError(
                f"A turn of the {turn.role} shows image {part} of {num_images}; only users show images, by "
                "their number from 0. Repair the dialogue.",
                reason="image_index",
            )
        order.append(part)
        return self.image_text()

    def _check_text(self, text: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{text[:60]!r} has half a character; remove it.", reason="text") from error
        found = self._refused.search(text)
        if found and found[0] in OBJECT_TOKENS:
            raise DataError(
                f"{found[0]} at character {found.start()} is no token of this {self.family}, which would "
                "read it letter by letter. Compose the chats without it: jobs/compose_dialogues.py --styles "
                "words or sentence.",
                reason="object_token",
            )
        if found:
            raise DataError(
                f"{found[0]} at character {found.start()} belongs to the chat format of {self.family} and "
                f"cannot stand in a turn's text ({text[:60]!r}). Remove or rewrite it.",
                reason="media_token" if found[0] in self.media_tokens else "control_token",
            )
        words.parse_words(text, num_codes=self.vocabulary.num_codes, num_levels=self.vocabulary.num_levels)

    def _encoded(
        self, pieces: list[tuple[str, bool]], images: Sequence[Picture], max_tokens: int | None
    ) -> Encoded:
        vision, runs = self._seen([_pixels(image) for image in images]) if images else ({}, [])
        sizes = iter(runs)
        ids: list[int] = []
        labels: list[int] = []
        for text, learnt in pieces:
            new = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
            new = [id_ for one in new for id_ in ([one] * next(sizes) if one == self._image_id else [one])]
            ids += new
            labels += new if learnt else [IGNORE] * len(new)
        if max_tokens is not None and len(ids) > max_tokens:
            raise DataError(
                f"the dialogue has {len(ids)} tokens and at most {max_tokens} are taken; it is left out, "
                "since cutting could split an image or a mask word. Raise the limit to keep it, or give the "
                "model smaller images (jobs/extend_mllm.py --image.max-pixels).",
                reason="too_long",
            )
        token_ids = torch.tensor(ids, dtype=torch.long)
        return Encoded(
            input_ids=token_ids,
            labels=torch.tensor(labels, dtype=torch.long),
            mm_token_type_ids=(token_ids == self._image_id).long(),
            vision=vision,
        )

    def _seen(self, images: Sequence[np.ndarray]) -> tuple[dict[str, Tensor], list[int]]:
        """Returns ``vision_tensors``; DataError ``processor`` where the checkpoint's processor takes no such
        image, which shows in that it takes a plain one. Lack of memory is no fault of an image."""
        try:
            return self.vision_tensors(images)
        except Exception as error:
            if lacks_memory(error):
                raise
            self.vision_tensors([_PLAIN])  # fails too if the fault is not in these images
            sizes = ", ".join(f"{image.shape[0]} x {image.shape[1]}" for image in images)
            raise DataError(
                f"the image processor of {self.family} does not take images of {sizes} pixels (height x "
                f"width): {str(error)[:300].rstrip('.')}. Leave them out, or pad them.",
                reason="processor",
            ) from error

    def with_blank_image(self, sample: E) -> E:
        """Returns a dialogue without images with a blank one behind its end, by which no loss changes.

        No token of the dialogue sees it, and nothing of it is learnt, but a batch with it goes through the
        vision encoder like any other with images, which gets gradients of zero.
        """
        blank = self._blank
        return replace(
            sample,
            input_ids=torch.cat([sample.input_ids, blank.input_ids]),
            labels=torch.cat([sample.labels, blank.labels]),
            mm_token_type_ids=torch.cat([sample.mm_token_type_ids, blank.mm_token_type_ids]),
            vision=blank.vision,
        )

    @cached_property
    def _blank(self) -> Encoded:
        return self._encoded([(self.image_text(), False)], [_PLAIN], None)

    def _patches(self, images: Sequence[np.ndarray], **options: object) -> Any:
        """Returns what the image processor makes of images, without scaling their values."""
        return self.image_processor(
            images=list(images),
            input_data_format="channels_last",
            do_rescale=False,
            do_normalize=False,
            **options,
        )

    def _scaled(
        self, images: UInt8[Tensor, "*batch 3 height width"]
    ) -> Float[Tensor, "*batch 3 height width"]:
        """Scales values as the image processor does."""
        theirs = self.image_processor
        mean, std = tuple(theirs.image_mean), tuple(theirs.image_std)
        return theirs.rescale_and_normalize(
            images, theirs.do_rescale, theirs.rescale_factor, theirs.do_normalize, mean, std
        )

    def vision_inputs(
        self, samples: Sequence[Encoded], device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Joins the vision tensors of dialogues as a model takes them; text-only dialogues have none.

        Pixels become floats only on the device.
        """
        names = dict.fromkeys(name for sample in samples for name in sample.vision)
        joined = {
            name: torch.cat([s.vision[name] for s in samples if name in s.vision]).to(
                device, non_blocking=True
            )
            for name in names
        }
        if joined:
            joined["pixel_values"] = self.normalized(joined["pixel_values"])
        return joined

    def collate(
        self,
        samples: Sequence[Encoded],
        *,
        side: Literal["right", "left"] = "right",
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor]:
        """Pads dialogues to one batch, on the right for training and on the left for generation."""
        length = max(len(sample) for sample in samples)

        def padded(rows: Sequence[Tensor], value: int) -> Tensor:
            out = torch.full((len(rows), length), value, dtype=torch.long)
            for target, row in zip(out, rows, strict=True):
                target[slice(len(row)) if side == "right" else slice(length - len(row), None)] = row
            return out.to(device, non_blocking=True)

        batch = {
            "input_ids": padded([s.input_ids for s in samples], self.pad_id),
            "attention_mask": padded([torch.ones_like(s.input_ids) for s in samples], 0),
            "labels": padded([s.labels for s in samples], IGNORE),
            **self.vision_inputs(samples, device),
        }
        if self.needs_token_types:
            batch["mm_token_type_ids"] = padded([s.mm_token_type_ids for s in samples], 0)
        return batch

    def pack(
        self, samples: Sequence[Encoded], *, device: torch.device | str = "cpu", see: bool = True
    ) -> dict[str, Tensor]:
        """Joins dialogues to one row without padding, which do not see each other; without ``see`` without
        their pixels.

        The text's positions start at 0 in each dialogue: from that alone, and only without an attention mask
        and without a cache, transformers derives which tokens may attend. With either one, or with fewer rows
        of positions, dialogues leak into each other silently; ``answer_loss`` refuses such rows.

        Raises:
            ConfigError: The family has no packing that is known to be free of leaks.
        """
        positions = torch.cat([self.positions(sample) for sample in samples], dim=1)
        labels = [sample.labels.clone() for sample in samples]
        for one in labels:
            one[:1] = IGNORE  # else the last token of the dialogue before would learn it
        rows = {
            "input_ids": torch.cat([s.input_ids for s in samples])[None],
            "position_ids": positions[:, None],
            "labels": torch.cat(labels)[None],
            "mm_token_type_ids": torch.cat([s.mm_token_type_ids for s in samples])[None],
        }
        rows = {name: tensor.to(device, non_blocking=True) for name, tensor in rows.items()}
        return rows | (self.vision_inputs(samples, device) if see else {})

    def load_model(
        self, folder: str | Path, *, dtype: torch.dtype = torch.float32, attn: str = "sdpa"
    ) -> PreTrainedModel:
        """Loads the model of a checkpoint folder and checks that it has a row for each token.

        Raises:
            CheckpointError: It cannot be read, needs a package that is not installed, is of another family,
                or as ``rows.check_rows``.
        """
        model = read_model(folder, dtype=dtype, attn=attn)
        if model.config.model_type != self.family:
            raise CheckpointError(
                f"{folder} holds a {model.config.model_type}; this adapter is for {self.family}. Load "
                "both from one folder."
            )
        check_rows(model, len(self.tokenizer))  # the tokenizer was checked when the adapter was made
        return model

    def _id(self, token: str, known: Mapping[str, int]) -> int:
        id_ = known.get(token)
        if id_ is None:
            raise CheckpointError(
                f"the text tokenizer has no token {token}, which {self.family} needs. Use the tokenizer "
                "of the checkpoint itself."
            )
        return id_

    def _control_tokens(self) -> list[str]:
        """Returns all tokens of the chat format: media tokens, and special ones that are not content."""
        special = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        speech = {*self.vocabulary.words, *OBJECT_TOKENS}
        named = (*self.media_tokens, self.end_of_turn, self.end_of_text)
        return [token for token in dict.fromkeys((*named, *special)) if token not in speech]

    def _read_preface(self) -> str:
        """Returns what the checkpoint's template writes before a first user, once it agrees with ours."""
        turns: list[dict[str, object]] = [{"role": "user", "content": [{"type": "text", "text": _PROBE}]}]
        template = getattr(self.processor, "chat_template", None)
        if not isinstance(template, str):
            raise CheckpointError("this checkpoint has no chat template. Give it that of the released ones.")
        given = rendered(template, turns, {**self.tokenizer.special_tokens_map, **self.template_options})
        ours = f"{self.header('user')}{_PROBE}{self.end_of_turn}{self.after_turn()}{self.header('assistant')}"
        if not given.endswith(ours):
            raise CheckpointError(
                f"the chat template of this checkpoint writes {given!r} where {self.family} writes {ours!r}. "
                "Give the folder the template of the released checkpoints."
            )
        return given.removesuffix(ours)


def _joined(parts: Sequence[str | int]) -> Iterator[str | int]:
    """Joins neighbouring texts, which could be a token of the chat format only together."""
    for is_text, group in groupby(parts, key=lambda part: isinstance(part, str)):
        run = list(group)
        yield from ["".join(map(str, run))] if is_text else run


def _pixels(image: Picture) -> np.ndarray:
    """Returns H x W x 3 uint8; DataError ``image`` for anything that is not RGB with pixels."""
    array = np.array(image.convert("RGB")) if isinstance(image, Image.Image) else image
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise DataError(
            f"an image must be H x W x 3 of uint8, got {array.shape} of {array.dtype}. Convert it to RGB.",
            reason="image",
        )
    return array if array.flags.writeable else array.copy()  # Ray's are not, and torch warns of those
