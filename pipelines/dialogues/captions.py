"""Tasks whose answer is text with masks in it: grounded captions (GCG) and scene graphs (PSG)."""

from pipelines.chats.tokens import OBJECT_END, OBJECT_START
from pipelines.dialogues import templates
from pipelines.dialogues.pieces import Message, Pieces, Ref, fill, foreign, joined, listed, phrase_of
from pipelines.dialogues.scene import Item, Scene, bad_payload, masks_at, triplets_of
from pipelines.dialogues.style import Voice, fenced, mask_entry, quoted
from samtok.errors import DataError


def ask_gcg(item: Item, scene: Scene, voice: Voice) -> list[Message]:
    """Asks for a caption whose phrases are followed by their masks.

    In the styles ``json`` and ``authors`` a phrase is marked as the authors do it,
    ``<|object_ref_start|> the dog <|object_ref_end|> WORD, WORD``; in others it is ``the dog WORD, WORD``.
    """
    text = foreign(item.text, "the caption")
    found: list[str | Ref] = []
    position = 0
    for start, end, mask_ids in _spans(item, text):
        masks = listed(scene.in_order(mask_ids))
        phrase = text[start:end].strip()
        marked = f"{OBJECT_START} {phrase} {OBJECT_END} " if voice.is_json else f"{phrase} "
        found += [text[position:start], marked, *masks]
        position = end
    answer = joined([*found, text[position:]])
    return [Message("user", voice.question("gcg")), Message("assistant", answer)]


def _spans(item: Item, text: str) -> list[tuple[int, int, tuple[str, ...]]]:
    """Returns start, end and masks of the phrases that have masks."""
    spans, found, position = item.payload.get("spans"), [], 0
    if not isinstance(spans, list):
        raise bad_payload(item.item_id, "needs a list of spans")
    for span in spans:
        if not isinstance(span, dict) or not all(type(span.get(end)) is int for end in ("start", "end")):
            raise bad_payload(item.item_id, f"has the span {span!r}, expected whole numbers start and end")
        start, end = span["start"], span["end"]
        if not position <= start < end <= len(text):
            raise bad_payload(
                item.item_id,
                f"has the span {start}-{end}; spans must ascend, lie apart and inside {len(text)} characters",
            )
        position = end
        mask_ids = masks_at(span.get("masks"), item.targets, item.item_id)
        if mask_ids:
            found.append((start, end, mask_ids))
    return found


def ask_psg(item: Item, scene: Scene, voice: Voice) -> list[Message]:
    """Asks for the triplets of a scene graph: fenced JSON, or in other styles one triplet per line.

    The authors' question lists the classes and predicates to choose from, if ``--psg-vocabulary`` says them.
    """
    triplets = triplets_of(item.payload, item.targets, item.item_id)
    if not triplets:
        raise bad_payload(item.item_id, "has no triplets")
    entries = [_triplet(triplet, scene, voice) for triplet in triplets]
    lines = [piece for n, entry in enumerate(entries) for piece in ("\n" if n else "", *entry)]
    answer = fenced(entries) if voice.is_json else joined(lines)
    lists = {name: ", ".join(texts) for name, texts in voice.psg.items()}
    candidates = fill(templates.PSG_CANDIDATES, **lists) if lists else ()
    question = voice.question("psg", candidates=candidates)
    return [Message("user", question), Message("assistant", answer)]


def _triplet(triplet: tuple[str, str, str], scene: Scene, voice: Voice) -> Pieces:
    subject, predicate, thing = triplet
    labels = [_class_of(scene, mask_id) for mask_id in (subject, thing)]
    if voice.is_json:
        return (
            '{"subject": ',
            *mask_entry(subject, labels[0]),
            f', "predicate": {quoted(predicate)}, "object": ',
            *mask_entry(thing, labels[1]),
            "}",
        )
    names = [phrase_of(text, "a scene graph's text") for text in (labels[0], predicate, labels[1])]
    return (f"{names[0]} ", Ref(subject), f" {names[1]} {names[2]} ", Ref(thing))


def _class_of(scene: Scene, mask_id: str) -> str:
    label = scene.label(mask_id)
    if not label:
        raise DataError(f"mask {mask_id!r} of a scene graph has no class", reason="no_label")
    return label
