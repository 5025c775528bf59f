"""Tasks whose answer is masks: res, gres, grounding, instances, and chats of several rounds."""

import random
from collections.abc import Sequence

from pipelines.dialogues.pieces import Message, Ref, phrase_of
from pipelines.dialogues.scene import Item, Scene, payload_of, triplets_of
from pipelines.dialogues.style import Voice
from samtok.errors import DataError

EVERY = "every"
"""Item of the question for all objects; classes are ``class:NAME``."""


def find_single(scene: Scene) -> list[Item]:
    """Returns the expressions with exactly one target (res, grounding)."""
    return [item for item in scene.items("referring") if len(item.targets) == 1]


def find_instances(scene: Scene) -> list[Item]:
    """Returns the classes of an image, and the question for every object of it.

    Only masks with words are known here: a crowd that was filtered when masks were tokenized is in no answer.
    """
    classes = [Item(f"class:{label}", found, text=label) for label, found in scene.labels().items()]
    everything = tuple(scene.masks)
    return [*classes, Item(EVERY, everything)] if everything else classes


def ask_targets(task: str, item: Item, scene: Scene, voice: Voice) -> list[Message]:
    """Asks for the targets of an expression, or of a class; where there are none, the answer says so."""
    phrase = phrase_of(item.text, "the expression")
    return [Message("user", voice.question(task, phrase=phrase)), _answer(item, phrase, scene, voice)]


def ask_instances(item: Item, scene: Scene, voice: Voice) -> list[Message]:
    """Asks for all objects of a class, or for all objects."""
    if item.item_id == EVERY:
        return [Message("user", voice.question("every_object")), _answer(item, "object", scene, voice)]
    return ask_targets("instances", item, scene, voice)


def find_rounds(scene: Scene) -> list[Item]:
    """Returns what the rounds of a chat can be: expressions with targets, relations, and names of objects.

    A relation is all that has one predicate towards one object; it can be asked once its object was answered.
    A name can be asked if no other mask of the image has it, and is only asked for the object of a relation.
    """
    found = [item for item in scene.items("referring") if item.targets]
    for annotation in scene.annotations("scene_graph"):
        found += _relations(annotation)
    objects = {item.payload["object"] for item in found if "object" in item.payload}
    for label, mask_ids in scene.labels().items():
        if len(mask_ids) == 1 and mask_ids[0] in objects:
            found.append(Item(f"name:{mask_ids[0]}", mask_ids, text=f"the {label}"))
    return found


def _relations(annotation: dict) -> list[Item]:
    name = annotation["annotation_id"]
    tags = tuple(annotation["tags"])
    try:
        triplets = triplets_of(payload_of(annotation), annotation["mask_ids"], name)
    except DataError as error:
        return [Item(name, tags=tags, annotation_id=name, problem=error)]
    groups: dict[tuple[str, str], list[str]] = {}
    for subject, predicate, thing in triplets:
        groups.setdefault((predicate, thing), []).append(subject)
    return [
        Item(f"{name}:{n}", tuple(subjects), (thing,), word, {"object": thing, "predicate": word}, tags, name)
        for n, ((word, thing), subjects) in enumerate(groups.items())
    ]


def arrange_rounds(items: Sequence[Item], rng: random.Random, most: int) -> list[list[Item]]:
    """Puts items in chats of 2 to ``most`` rounds, so that a relation follows the answer with its object.

    Items that no chat can take are in none: relations whose object is never answered, an expression alone.
    """
    items = sorted(items, key=lambda item: item.item_id)  # so that only the seed shuffles them
    relations = [item for item in items if "object" in item.payload]
    wanted = {item.payload["object"] for item in relations}
    openings = [item for item in items if "object" not in item.payload]
    rng.shuffle(openings)
    rng.shuffle(relations)
    # A stable sort keeps the shuffle; names come last, and only where no expression has answered the object.
    openings.sort(key=lambda item: (item.annotation_id is None, not wanted & set(item.targets)))
    chats: list[list[Item]] = []
    while chat := _next_chat(openings, relations, most):
        if len(chat) > 1:
            chats.append(chat)
    return chats


def _next_chat(openings: list[Item], relations: list[Item], most: int) -> list[Item]:
    """Takes the rounds of one chat out of the lists."""
    chat: list[Item] = []
    known: set[str] = set()
    while len(chat) < most:
        item = next((item for item in relations if item.payload["object"] in known), None)
        if item is not None:
            relations.remove(item)
        else:
            item = _opening(openings, relations)
        if item is None:
            break
        chat.append(item)
        known |= set(item.targets)
    return chat


def _opening(openings: list[Item], relations: list[Item]) -> Item | None:
    """Takes the next opening; a name is worth a round only if a relation waits for it."""
    while openings:
        item = openings.pop(0)
        waited = {relation.payload["object"] for relation in relations}
        if item.annotation_id is not None or waited & set(item.targets):
            return item
    return None


def ask_round(item: Item, scene: Scene, voice: Voice) -> list[Message]:
    """Asks one round: an expression, a name, or what relates to a mask that was answered before."""
    if "object" not in item.payload:
        return ask_targets("res" if len(item.targets) == 1 else "gres", item, scene, voice)
    predicate = phrase_of(item.payload["predicate"], "the predicate")
    question = voice.question("relation", predicate=predicate, mask=(Ref(item.payload["object"]),))
    return [Message("user", question), _answer(item, predicate, scene, voice)]


def _answer(item: Item, phrase: str, scene: Scene, voice: Voice) -> Message:
    """Answers with the targets, left to right; a mask without a class is labelled by the question."""
    ordered = scene.in_order(item.targets)
    return Message("assistant", voice.masks([(name, scene.label(name) or phrase) for name in ordered]))
