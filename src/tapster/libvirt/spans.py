# SPDX-License-Identifier: Apache-2.0
"""Where the elements of an XML text begin and end. Pure.

libvirt's users edit domain XML by hand. So Tapster changes the parts of the text
that it must and leaves every other byte as it is, which no XML library does when it
writes a tree.
"""

from xml.parsers import expat

from tapster.errors import RequestError
from tapster.light import NamedTuple

DEEPEST = 256
"""Elements around an element. libvirt itself takes no more."""


class Span(NamedTuple):
    """An element of the text."""

    path: tuple[str, ...]
    """The names of the element and of those around it, the outermost first. A name
    in a namespace is "URI name"."""
    attributes: dict[str, str]
    start: int
    """The offset of its first byte."""
    end: int
    """The offset of the byte after its last byte."""
    inner: int
    """The offset of the byte after its start tag; `end` if the element is empty."""
    text: str
    """The characters directly in it."""


def spans(data: bytes) -> list[Span]:
    """Return every element of an XML text, in the order in which they begin.

    Raises RequestError if the text is not well-formed.
    """
    found: list[Span | None] = []
    open_elements: list[tuple[int, dict[str, str], int, list[str]]] = []
    path: list[str] = []
    parser = expat.ParserCreate(namespace_separator=" ")
    # The handlers get no entities of the text's own: a domain has none, and a
    # text that defines some could be made to grow without end.
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)

    def begin(name: str, attributes: dict[str, str]) -> None:
        if len(path) == DEEPEST:
            raise RequestError(f"elements are nested more than {DEEPEST} deep")
        path.append(name)
        open_elements.append((len(found), attributes, parser.CurrentByteIndex, []))
        found.append(None)

    def finish(name: str) -> None:
        place, attributes, start, text = open_elements.pop()
        inner = data.index(b">", _after_quotes(data, start)) + 1
        empty = data[inner - 2 : inner] == b"/>"
        end = inner if empty else data.index(b">", parser.CurrentByteIndex) + 1
        found[place] = Span(
            tuple(path), attributes, start, end, end if empty else inner, "".join(text)
        )
        path.pop()

    def characters(text: str) -> None:
        if open_elements:
            open_elements[-1][3].append(text)

    def refuse(*_: object) -> None:
        raise RequestError("the XML declares entities of its own: remove them")

    parser.StartElementHandler = begin
    parser.EndElementHandler = finish
    parser.CharacterDataHandler = characters
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise RequestError(f"the XML is not well-formed: {error}") from None
    return [span for span in found if span is not None]


def _after_quotes(data: bytes, start: int) -> int:
    """Return a place before the end of the start tag and after all its values."""
    place = start
    while True:
        end = data.index(b">", place)
        quotes = [
            (where, mark)
            for mark in (b'"', b"'")
            if (where := data.find(mark, place, end)) >= 0
        ]
        if not quotes:
            return place
        where, mark = min(quotes)
        place = data.index(mark, where + 1) + 1


def children(elements: list[Span], parent: Span) -> list[Span]:
    """Return the elements directly inside another element."""
    depth = len(parent.path) + 1
    return [
        span
        for span in elements
        if parent.start < span.start < parent.end and len(span.path) == depth
    ]


def replaced(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """Return the text with some parts replaced. The parts must not overlap."""
    parts, place = [], 0
    for start, end, new in sorted(changes):
        assert start >= place, "two changes overlap"
        parts += [data[place:start], new]
        place = end
    return b"".join([*parts, data[place:]])


def with_line(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Return a span with the white space before it, and the end of the line before."""
    while start and data[start - 1] in b" \t":
        start -= 1
    if start and data[start - 1] == ord("\n"):
        start -= 1
    return start, end


def indent(data: bytes, start: int) -> bytes:
    """Return the white space before a place in its line."""
    line = data.rfind(b"\n", 0, start) + 1
    return data[line:start] if not data[line:start].strip() else b""
