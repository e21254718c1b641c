"""Texts of others in the report's formats: shown as they are, read back as they were, and never run."""

import csv
import io
import re
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from vpd.report.cells import csv_text, number, read_csv
from vpd.report.markdown import code, escape, prose
from vpd.report.write import _environment

TEXTS = (
    "plain text, 1.5 ± 0.2 (δ1 ↓)", "a | b", "a \\| b", "ends in \\", "\\\\|", "<img src=x onerror=alert(1)>", "a < b > c", "<b>",
    "<!-- hidden", "</table>", "&lt;b&gt;", "&amp;", "&#60;", "a & b", "AT&T", "[text](javascript:alert(1))", "![x](http://a/b.png)",
    "[ref][1]", "[^1]", "**bold**", "*one", "a*b*c", "_italic_", "__init__", "snake_case_name", "_", "`code`", "``", "`",
    "~~gone~~",
    "$x^2$", "$$", "# head", "> quote", "- item", "+ text adapter", "1. one", "---", "===", "\\*", "\\\\*", "|", "||", "|---|",
    "{{ 7 * 7 }}", "{% raw %}", "${HOME}", "$(id)", "émoji 🙂", "日本語", "a\u00a0b", "'quoted'", '"quoted"', "a\tb", "http://a.b/c_d_e",
)  # fmt: skip
"""Texts that mean something in markdown, HTML or templates, and some that do not."""
BROKEN = {
    "a\nb": "a b",
    "a\r\nb": "a b",
    "a\u2028b": "a b",
    "a\x1b[2Jb": r"a\x1b[2Jb",
    "a\u202eb": r"a\u202eb",
    "\x07": r"\x07",
}
"""Texts that end a line or drive a terminal, and as what they are shown."""
FORMULAS = (
    "=1+1", "=cmd|' /C calc'!A0", "+ text adapter", "-1+2", "@SUM(A1)", "\t=1", "-", "+", "--1", "-1e", "+1 000", "＝1", "－x",
    "-1\n",
)  # fmt: skip
NUMBERS = ("-1", "-0.5", "+3", "-1e-05", "1.5", "0", "")


def shown(markdown: str) -> str:
    """What a reader sees of one line of markdown with tables: its text, or its HTML if that holds a tag."""
    parsed = (
        MarkdownIt("commonmark", {"html": True})
        .enable(["table", "strikethrough"])
        .render(f"| h |\n| --- |\n| {markdown} |")
    )
    cells = re.findall(r"<td>(.*?)</td>", parsed, flags=re.S)
    assert len(cells) == 1, parsed
    return text_of(cells[0])


def text_of(html: str) -> str:
    parts: list[str] = []
    parser = HTMLParser()
    parser.handle_data = parts.append
    parser.feed(html)
    parser.close()
    return "".join(parts) if "<" not in html else html


@pytest.mark.parametrize("text", TEXTS)
def test_a_cell_of_a_table_shows_the_text_itself(text):
    expected = text.strip().replace("\t", r"\t")
    assert shown(escape(text)) == expected
    assert escape(escape(text)) == escape(text)
    heading = MarkdownIt("commonmark", {"html": True}).render(f"### {escape(text)}")
    assert text_of(heading.strip().removeprefix("<h3>").removesuffix("</h3>")) == expected


@pytest.mark.parametrize("text", [text for text in TEXTS if text.strip("` ")])
def test_an_id_as_code_shows_the_text_itself(text):
    assert text_of(shown(code(text)).removeprefix("<code>").removesuffix("</code>")) == text.strip().replace(
        "\t", r"\t"
    )


@pytest.mark.parametrize(("text", "expected"), BROKEN.items())
def test_a_text_stays_on_its_line_and_drives_no_terminal(text, expected):
    assert shown(escape(text)) == expected
    assert all(letter.isprintable() for letter in escape(text) + code(text))


def test_only_code_of_a_caption_is_markup():
    assert prose("`a_b`: <b> *x*") == r"`a_b`: &lt;b> \*x\*"


@pytest.mark.parametrize("text", [*TEXTS, *BROKEN])
def test_a_page_shows_the_text_itself(text):
    template = '<p title="{{ text }}">{{ text }}</p>'
    parts: list[str] = []
    titles: list[str] = []
    parser = HTMLParser()
    parser.handle_data = parts.append
    parser.handle_starttag = lambda tag, attributes: titles.extend([tag, *(value for _, value in attributes)])
    parser.feed(_environment("html").from_string(template).render(text=text))
    parser.close()
    safe = "".join(c if c.isprintable() or c == "\u00a0" else c.encode("unicode_escape").decode() for c in text)
    assert ("".join(parts), titles) == (safe, ["p", safe])


@pytest.mark.parametrize("text", [*TEXTS, *FORMULAS])
def test_no_cell_of_a_csv_file_is_a_formula_and_all_are_read_back(tmp_path, text):
    written = csv_text(["name", "value"], [[text, "-0.5"], ["x", "1"]])
    _, (name, value), _ = csv.reader(io.StringIO(written))
    assert not name.startswith(("=", "+", "-", "@", "\t", "＝", "－"))
    assert value == "-0.5"
    (tmp_path / "a.csv").write_text(written, encoding="utf-8", newline="")
    frame = read_csv(tmp_path / "a.csv", ["name", "value"], "")
    assert (frame["name"][0], frame["value"][0]) == (text, -0.5)


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_stay_numbers(text):
    assert csv_text(["value", "x"], [[text, number(-1e-5)]]) == f"value,x\n{text},-1e-05\n"
