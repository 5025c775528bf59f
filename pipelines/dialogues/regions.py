"""Tasks whose question names masks: captions of regions, questions about them, dialogues."""

from pipelines.dialogues.pieces import Message, Ref, foreign, with_masks
from pipelines.dialogues.scene import Item, Scene, bad_payload
from pipelines.dialogues.style import Voice
from samtok.errors import DataError


def ask_region_caption(item: Item, scene: Scene, voice: Voice) -> list[Message]:
    """Asks for the caption of one mask. Without a true one the answer is empty, and is never learnt, if the
    dataset has questions that judge it (DLC-Bench)."""
    if len(item.mentions) != 1:
        raise DataError(
            f"a caption of a region needs one mask, annotation {item.item_id!r} has {len(item.mentions)}",
            reason="mask_count",
        )
    question = voice.question("region_caption", mask=(Ref(item.mentions[0]),))
    if item.text is None and item.payload.get("questions"):  # a benchmark's, whose answers are judged
        return [Message("user", question), Message("assistant", ())]
    answer = foreign(item.text, "the caption").strip()
    return [Message("user", question), Message("assistant", (answer,))]


def ask_region_qa(item: Item, scene: Scene, voice: Voice) -> list[Message]:
    """Asks the dataset's own question, in whose text and answer ``<mask 0>`` becomes words."""
    voice.used.append("region_qa/own")
    texts = [item.payload.get(name) for name in ("question", "answer")]
    if not all(isinstance(text, str) for text in texts):
        raise bad_payload(item.item_id, "needs the texts question and answer")
    return [
        Message(role, with_masks(text, item.mentions, f"the {role}'s text"))
        for role, text in zip(("user", "assistant"), texts, strict=True)
    ]


def ask_dialogue(item: Item, scene: Scene, voice: Voice) -> list[Message]:
    """Repeats a dialogue of the dataset: an optional system message, then user and assistant in turn."""
    voice.used.append("dialogue/own")
    turns = item.payload.get("turns")
    if not isinstance(turns, list) or not all(_is_turn(turn) for turn in turns):
        raise bad_payload(item.item_id, "needs a list of turns, each with the texts role and text")
    roles = [turn["role"] for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or len(spoken) % 2 or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise bad_payload(item.item_id, f"has the roles {roles}, expected user and assistant in turn")
    return [Message(t["role"], with_masks(t["text"], item.mentions, "a turn")) for t in turns]


def _is_turn(turn: object) -> bool:
    return isinstance(turn, dict) and all(isinstance(turn.get(name), str) for name in ("role", "text"))
