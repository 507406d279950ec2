"""The page as a tree, for tests to look at."""

import base64
from html.parser import HTMLParser
from pathlib import Path

from lightning_attr.commands.report.contents import collect
from lightning_attr.commands.report.page import render

VOID = {"img", "meta", "link", "input", "br", "hr"}


class Element:
    """A node of the page."""

    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag = tag
        self.attributes = attributes
        self.children: list[Element | str] = []

    def all(self, tag: str | None = None, **attributes: str) -> "list[Element]":
        """Descendants of a tag and with attributes (a class among others), in document order."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if (tag is None or child.tag == tag) and all(
                    value in child.attributes.get(name, "").split() for name, value in attributes.items()
                ):
                    found.append(child)
                found += child.all(tag, **attributes)
        return found

    def id(self, name: str) -> "Element":
        (found,) = [element for element in self.all() if element.attributes.get("id") == name]
        return found

    @property
    def text(self) -> str:
        return " ".join("".join(c if isinstance(c, str) else f" {c.text} " for c in self.children).split())


class Page(HTMLParser):
    """A tree of the page; every element must be closed by its own tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.root = Element("document", {})
        self.open = [self.root]
        self.feed(html)
        self.close()
        assert self.open == [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def page_of(root: Path) -> Element:
    return Page(render(collect(root))).root


def image(element: Element) -> bytes:
    (found,) = element.all("img")
    return base64.b64decode(found.attributes["src"].partition("base64,")[2])


def training_image(page: Element, element: Element) -> bytes:
    """The page keeps each training image once, whatever the number of rankings that show it."""
    (used,) = element.all("use")
    return base64.b64decode(page.id(used.attributes["href"][1:]).attributes["href"].partition("base64,")[2])
