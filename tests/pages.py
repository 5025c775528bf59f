"""Reads report pages: tags, attributes, visible text, pictures."""

import base64
import io
from html.parser import HTMLParser

from PIL import Image


class Page(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes a tag and its attributes."""
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        """Notes text, but no styles."""
        if self.tags[-1:] != ["style"]:
            self.words.append(data)

    def sources(self) -> list[str]:
        """Returns where pictures come from."""
        return [value for name, value in self.attributes if name == "src"]

    def pictures(self) -> list[Image.Image]:
        """Opens the pictures, all of which must be part of the page."""
        return [
            Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in self.sources()
        ]
