"""Reads a page with html.parser and holds it to what every page of ours must be."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Dict, List, Optional, Tuple

VOID = {"meta", "link", "img", "input", "br"}
ADDRESSES = ("src", "href", "action", "srcset", "poster", "data", "xlink:href", "background", "formaction")


class Page(HTMLParser):
    """Tags, ids, addresses and visible text of a page; `problems` is what is wrong with it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.problems: List[str] = []
        self.tags: List[Tuple[str, Dict[str, Optional[str]]]] = []
        self.texts: List[str] = []
        self.headings: List[int] = []
        self._open: List[str] = []
        self.feed(text)
        self.close()
        self.problems += [f"<{tag}> is never closed" for tag in self._open]
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        self.problems += [f"id {one!r} twice" for one in set(ids) if ids.count(one) > 1]
        self.problems += [f"no place {one}" for one in self.all("href") if one.startswith("#") and one[1:] not in ids]

    def all(self, attribute: str) -> List[str]:
        return [attributes[attribute] or "" for _, attributes in self.tags if attribute in attributes]

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    def handle_starttag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if len(attributes) < len(attrs):
            self.problems.append(f"<{tag}> has an attribute twice")
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attributes.items():
            if name.startswith("on") or name == "style":
                self.problems.append(f"<{tag} {name}> would need a weaker policy")
            if name in ADDRESSES and not (value or "").startswith(("#", "data:")):
                self.problems.append(f"<{tag} {name}={value!r}> is not in the page")
        if tag in ("h1", "h2", "h3"):
            self.headings.append(int(tag[1]))
        if tag in ("svg", "img") and not (
            attributes.get("aria-label") or attributes.get("alt") or "aria-hidden" in attributes
        ):
            self.problems.append(f"<{tag}> without words")

    def handle_startendtag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1] != tag:
            self.problems.append(f"</{tag}> closes {self._open[-1:]}")
        else:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())
