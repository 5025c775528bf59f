"""What videos with expressions have in common: MeViS, ReVOS, Ref-YouTube-VOS.

The source is a ``meta_expressions.json``, ``{"videos": {NAME: {"frames": [...], "expressions": {ID: {"exp":
TEXT, ...}}}}}``. It is held in memory; masks, which are elsewhere, are not.

Masks of objects that no expression of the file names are not read: ReVOS keeps those of both splits in one
file. A video that cannot be used is one reject; how many masks are lost with it counts as 0. An expression
that cannot be used is one reject of no mask, and is left out in all frames.
"""

from typing import Any, ClassVar, NamedTuple

from pipelines import storage
from pipelines.ingestion import annotations, records
from pipelines.ingestion.reader import Reject
from pipelines.ingestion.records import Record
from pipelines.ingestion.video_frames import Layout
from samtok.errors import DataError


class Video(NamedTuple):
    """A video of the file."""

    frames: list[str]
    """In the order of its masks."""
    texts: list[Record]
    """Usable expressions, as ``Frame.texts``."""
    size: Record | None
    """``height`` and ``width`` as stated."""

    @property
    def objects(self) -> list[str]:
        """Ids of all that expressions mean."""
        named = {mask_id: None for text in self.texts for mask_id in text["masks"]}
        return sorted(named, key=records.id_order)


class ExpressionLayout(Layout):
    """What the three have in common.

    Attributes:
        target: Key of an expression's objects.
    """

    frame_paths: ClassVar = ("{video}/{frame}.jpg",)
    target: ClassVar[str] = "anno_id"

    def videos(self) -> tuple[dict[str, Video], list[Reject]]:
        """Returns the usable videos by name, and the rejects of others and of expressions.

        Raises:
            DataError: ``video_layout`` if the file has another layout, or no expression says what it means.
        """
        source = self.reader.source
        corpus = records.parse_json(storage.read_bytes(source), source)
        videos = corpus.get("videos") if isinstance(corpus, dict) else None
        if not isinstance(videos, dict):
            raise DataError(
                f"{source} is no object with the object videos, expected a meta_expressions.json of MeViS, "
                "ReVOS or Ref-YouTube-VOS",
                reason="video_layout",
            )
        found: dict[str, Video] = {}
        rejects: list[Reject] = []
        for name, body in videos.items():
            shown = name if records.is_utf8(name) else repr(name)
            try:
                found[name] = self._video(name, shown, body, rejects)
            except DataError as error:
                rejects.append(self.reader.reject(shown, error.reason, f"video {shown}: {error}"))
        self._check_targets(videos)
        return found, rejects

    def _check_targets(self, videos: Record) -> None:
        """Refuses a split whose masks are not published."""
        bodies = [body["expressions"] for body in videos.values() if _has_expressions(body)]
        listed = [one for body in bodies for one in body.values() if isinstance(one, dict)]
        if listed and not any(self.target in one for one in listed):
            raise DataError(
                f"no expression of {self.reader.source} has {self.target}: what they mean in this split is "
                "not published; take train, or of MeViS valid_u",
                reason="video_layout",
            )

    def _video(self, name: str, shown: str, body: Any, rejects: list[Reject]) -> Video:
        if not records.is_utf8(name) or not name:
            raise DataError("its name is empty or not UTF-8", reason="video_record")
        if not _has_expressions(body):
            raise DataError(f"it is {body!r:.200}, expected frames and expressions", reason="video_record")
        frames = body.get("frames")
        if not isinstance(frames, list) or not all(isinstance(one, str) and one for one in frames):
            raise DataError(f"frames are {frames!r:.200}, expected a list of texts", reason="video_record")
        if len(set(frames)) < len(frames):
            raise DataError("a frame is repeated, so masks cannot be told apart", reason="duplicate_frame")
        texts = []
        for expression_id, one in body["expressions"].items():
            try:
                texts.append(self._text(expression_id, one))
            except DataError as error:
                own = expression_id if records.is_utf8(expression_id) else repr(expression_id)
                rejects.append(annotations.annotation_reject(self.reader.name, shown, own, error))
        texts.sort(key=lambda text: records.id_order(text["id"]))
        return Video(self._ordered(frames), texts, self._stated(body))

    def _text(self, expression_id: str, expression: Any) -> Record:
        if not isinstance(expression, dict) or records.id_text(expression_id) is None:
            raise DataError(f"it is {expression!r:.200}, expected exp and an id", reason="annotation_id")
        return {
            "id": expression_id,
            "task": "referring",
            "text": annotations.text_of(expression.get("exp"), "exp"),
            "masks": self._targets(expression),
            "tags": self._tags(expression),
        }

    def _targets(self, expression: Record) -> list[str]:
        value = expression.get(self.target)
        targets = [records.id_text(one) for one in (value if isinstance(value, list) else [value])]
        if None in targets:
            what = "a list of ids, empty for no target" if self.target == "anno_id" else "an id"
            raise DataError(f"{self.target} is {value!r:.80}, expected {what}", reason="annotation_targets")
        return list(dict.fromkeys(target for target in targets if target is not None))

    def _tags(self, expression: Record) -> list[str]:
        return []

    def _ordered(self, frames: list[str]) -> list[str]:
        return sorted(frames)

    def _stated(self, body: Record) -> Record | None:
        return None


def _has_expressions(body: Any) -> bool:
    return isinstance(body, dict) and isinstance(body.get("expressions"), dict)
