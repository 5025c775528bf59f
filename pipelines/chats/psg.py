"""The vocabulary of scene graphs: which labels and predicates there are."""

from dataclasses import dataclass
from typing import Any

from pipelines import storage
from samtok.errors import ConfigError

LISTS = ("categories", "predicates")
OWN = {"things": "thing_classes", "stuff": "stuff_classes", "predicates": "predicate_classes"}
"""The lists of OpenPSG's psg.json; its categories are those of things and then those of stuff."""


@dataclass(frozen=True)
class PsgVocabulary:
    """What a scene graph may say; lists are empty where they are not known."""

    categories: tuple[str, ...] = ()
    predicates: tuple[str, ...] = ()
    stuff: tuple[str, ...] = ()  # categories without instances, such as grass

    @classmethod
    def read(cls, uri: str | None) -> "PsgVocabulary":
        """Reads the file of ``--psg-vocabulary``: lists ``categories``, ``predicates`` and maybe ``stuff``;
        or the data set's own file.

        Raises:
            ConfigError: If it lacks ``categories`` or ``predicates``, lists of texts, or ``stuff`` is no list
                of some of the categories.
        """
        if uri is None:
            return cls()
        body = _lists_of(storage.read_json(uri))
        lists = {name: body.get(name) for name in LISTS} if isinstance(body, dict) else {"": None}
        if not all(one and _is_texts(one) for one in lists.values()):
            raise ConfigError(
                f"--psg-vocabulary {uri} must be a JSON object with the lists of texts {' and '.join(LISTS)};"
                f" or {', '.join(OWN.values())}, as in OpenPSG's psg.json."
            )
        stuff = body.get("stuff", [])
        if not _is_texts(stuff) or not set(stuff) <= set(body["categories"]):
            raise ConfigError(f"--psg-vocabulary {uri}: stuff must be a list of some of its categories.")
        return cls(tuple(body["categories"]), tuple(body["predicates"]), tuple(stuff))


NO_VOCABULARY = PsgVocabulary()
"""Any label and predicate."""


def _lists_of(body: Any) -> Any:
    """Returns a file's body with our lists, if it is one of OpenPSG's."""
    if not isinstance(body, dict) or not all(_is_texts(body.get(name)) for name in OWN.values()):
        return body
    things, stuff, predicates = (body[name] for name in OWN.values())
    return {"categories": [*things, *stuff], "predicates": predicates, "stuff": stuff}


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
