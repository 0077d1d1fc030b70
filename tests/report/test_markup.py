import pytest

from r1jax.report.markup import Markup, breakable, escape, join, tag


def test_text_is_escaped_and_markup_is_not():
    assert tag("p", "a < b", tag("b", "!"), class_="note") == '<p class="note">a &lt; b<b>!</b></p>'
    assert join("a&b", None, ["<", Markup("<br>")], 3) == "a&amp;b&lt;<br>3"
    assert tag("meta", charset="utf-8") == '<meta charset="utf-8">'
    assert (
        tag("path", stroke_width=1.25, x=2.0, fill=None) == '<path stroke-width="1.2" x="2"></path>'
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("\"'&", "&quot;&#x27;&amp;"),
        ("a\x00b\x1b[0m\r\x7f", "a␀b␛[0m␍␡"),  # U+2400 plus the code; DEL is U+2421
        ("\ud800\uffff", "\ufffd\ufffd"),  # neither can be written as UTF-8 text of a page
        ("a\n\tb", "a\n\tb"),
    ],
)
def test_hostile_text(text, shown):
    assert escape(text) == shown
    assert tag("p", text) == f"<p>{shown}</p>"
    assert tag("p", title=text) == f'<p title="{shown}"></p>'
    escape(text).encode()


def test_long_names_break_behind_separators():
    assert breakable("a_b/c.d<") == "a_<wbr>b/<wbr>c.<wbr>d&lt;"
    assert breakable("end_") == "end_"
