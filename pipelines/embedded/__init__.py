"""Synthetic corpora that are always there: inputs of the ``smoke`` presets, made when they are first named.

They lie below ``runs/embedded``; no other place is ever made. Loads neither torch nor Ray until it makes one.

    runs/embedded/shapes                                a corpus of images and masks, as COCO
    runs/embedded/{gres,gcg}-{train,val}/{shapes,words,chats}
                                                        referring questions, or captions with masks
    runs/embedded/vqa-{train,val}/{shapes,chats}        questions that no mask answers, half without an image
    runs/embedded/gres-train/replies.jsonl              a thought about each question, by a template
"""

from pipelines import storage
from pipelines.config import RunConfig, with_places
from pipelines.job import absolute
from pipelines.storage import lease

FOLDER = "runs/embedded"
SHAPES = "shapes"
CHATS = ("gres-train", "gres-val", "gcg-train", "gcg-val", "vqa-train", "vqa-val")
DONE = {
    SHAPES: "annotations/instances_val.json",
    **dict.fromkeys(CHATS, "chats/_MANIFEST.json"),
    "gres-train": "replies.jsonl",
}
"""File of each corpus that is written last."""


def missing(config: RunConfig) -> tuple[str, ...]:
    """Returns the embedded corpora that a config names and that are not there yet, as their folders."""
    root = absolute(FOLDER)
    named: list[str] = []

    def note(place: str) -> str:
        name = place.removeprefix(f"{root}/").partition("/")[0]
        if place.startswith(f"{root}/") and name in DONE:
            named.append(name)
        return place

    with_places(config, note)
    folders = {name: storage.join(root, name) for name in named}
    return tuple(
        folder
        for name, folder in folders.items()
        if not config.out.startswith(folder) and not storage.exists(storage.join(folder, DONE[name]))
    )


def make(config: RunConfig) -> None:
    """Makes them."""
    from pipelines.embedded.corpora import make_chats, make_questions, make_shapes  # load what jobs load

    with lease.held(absolute(FOLDER), patient=True):  # another job may be making them
        for folder in missing(config):
            name = folder.rpartition("/")[2]
            if name == SHAPES:
                make_shapes(folder)
                continue
            task, _, split = name.partition("-")
            if task == "vqa":
                make_questions(folder, held_out=split == "val")
            else:
                make_chats(folder, "gcg" if task == "gcg" else "gres", held_out=split == "val")
