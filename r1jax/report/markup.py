"""HTML and SVG as nested calls, in which everything is escaped that is not markup already.

    tag("p", "a < b", tag("b", "!"), class_="note")   →   <p class="note">a &lt; b<b>!</b></p>

Text of a model may hold tags, quotes, control characters and halves of surrogate pairs: none
of them can leave the element that it was put into.
"""

import html
import re
from collections.abc import Iterable

VOID = frozenset({"br", "hr", "img", "meta", "wbr"})
# Not allowed in HTML, in any spelling: shown as the pictures that Unicode has of them.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_UNPAIRED = re.compile("[\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is markup: it is put into a page as it is."""

    __slots__ = ()


def escape(value: object) -> Markup:
    """`value` as text of a page; markup stays as it is."""
    if isinstance(value, Markup):
        return value
    text = _CONTROL.sub(lambda m: "␡" if m[0] == "\x7f" else chr(0x2400 + ord(m[0])), str(value))
    return Markup(html.escape(_UNPAIRED.sub("\ufffd", text)))


def join(*children: object) -> Markup:
    """The children one after the other; None is nothing, and a list is its items."""
    return Markup("".join(_flat(children)))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element. `class_` is the attribute class and `stroke_width` is stroke-width; one that
    is None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def breakable(name: object) -> Markup:
    """A long name or path, which may be broken behind `_`, `.` and `/`."""
    return Markup(re.sub(r"(?<=[_./])(?=.)", tag("wbr"), escape(name)))


def _flat(children: Iterable[object]) -> Iterable[str]:
    for child in children:
        if isinstance(child, str):
            yield escape(child)
        elif isinstance(child, Iterable):
            yield from _flat(child)
        elif child is not None:
            yield escape(child)


def _short(value: object) -> object:
    """Coordinates to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
