"""The documentation as a site: built without a network, complete, and readable from disk in a real browser."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urldefrag

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from browser_world import chromium

DOCS = Path(__file__).parents[1] / "docs"
SOURCES = [*DOCS.glob("*.md"), *DOCS.glob("*.ipynb")]
PAGES = sorted("index" if path.stem == "README" else path.stem for path in SOURCES)
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
PATIENCE = 60


def hook(name: str) -> ModuleType:
    """A module of hooks that MkDocs loads by its path."""
    found = importlib.util.spec_from_file_location(name, DOCS / "mkdocs" / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


hooks, notebooks = hook("hooks"), hook("notebooks")


class Page(HTMLParser):
    """Ids of a page, where its hyperlinks lead, the same of its navigation alone, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids, self.links, self.navigation, self.loaded, self._navs = {"", "__top"}, set(), set(), set(), 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self._navs += tag == "nav"
        self.ids |= {known.get("id"), known.get("name")}
        if tag == "a" and "href" in known:
            self.links.add(known["href"])
            self.navigation |= {known["href"]} if self._navs else set()
        elif known.get("rel") not in ("canonical", "prev", "next"):
            self.loaded |= {known[key] for key in ("src", "href", "data") if key in known}

    def handle_endtag(self, tag: str) -> None:
        self._navs -= tag == "nav"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built where no proxy answers."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    command = ["-m", "mkdocs", "build", "--strict", "-f", str(DOCS / "mkdocs" / "mkdocs.yml"), "-d", str(folder)]
    environment = {**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stdout + built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("browser")) as driver:
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        yield driver


# ----------------------------------------------------------------------------------------------------------------- files
def test_every_page_of_docs_is_built_and_in_the_navigation(site, pages):
    files = {site / f"{page}.html" for page in PAGES}
    assert pages.keys() == files
    assert {site / href for href in pages[site / "params.html"].navigation if "#" not in href} == files


def test_pages_load_nothing_from_elsewhere(site, pages):
    sources = [(path, source) for path, page in pages.items() for source in page.loaded]
    loaded = {path.parent / source.partition("?")[0] for path, source in sources if not source.startswith("data:")}
    assert [str(source) for source in loaded if not source.is_file()] == []
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//[^)]*", styles) == []


def test_local_links_lead_to_a_file_and_an_anchor(pages):
    local = [(path, *urldefrag(href)) for path, page in pages.items() for href in page.links if "://" not in href]
    assert len(local) > 100
    ends = [(path.parent / name if name else path, unquote(anchor), path.name) for path, name, anchor in local]
    assert [end for end in ends if end[0] not in pages or end[1] not in pages[end[0]].ids] == []


def test_the_api_page_shows_the_package(site):
    assert 'id="vpd"' in (site / "api.html").read_text(encoding="utf-8")


def test_the_tutorial_is_a_page_with_all_of_its_cells(site):
    notebook = nbformat.read(DOCS / "tutorial.ipynb", as_version=4)
    nbformat.validate(notebook)
    headings = [line for cell in notebook.cells for line in cell.source.splitlines() if line.startswith("## ")]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    pictures = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    page = (site / "tutorial.html").read_text(encoding="utf-8")
    assert page.count('<div class="highlight">') >= len(code) >= 10
    assert page.count('src="data:image/png;base64,') == len(pictures)
    assert [f"## {title}" for title in re.findall("<h2 id=[^>]*>([^<]+)", page)] == headings


def test_a_notebook_shows_what_was_printed_and_drawn():
    shown = [
        new_output("stream", name="stdout", text="1\n```\n"),
        new_output("execute_result", {"text/plain": "<Image>", "image/png": "iVBO\n"}),
        new_output("execute_result", {"text/plain": "2"}),
        new_output("display_data", {"image/png": "Rw0K"}),
    ]
    cells = [new_markdown_cell("# A *title*"), new_code_cell("print(1)\n2", outputs=shown), new_code_cell("x = 3")]
    assert list(notebooks.as_markdown(new_notebook(cells=cells))) == [
        "# A *title*", "````python\nprint(1)\n2\n````", "````text\n1\n```\n````",
        "![](data:image/png;base64,iVBO)", "````text\n2\n````", "![](data:image/png;base64,Rw0K)",
        "````python\nx = 3\n````",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("markdown", "with_repository", "without"),
    [
        ("see [a](../b.json).", "see [a](R/blob/main/b.json).", "see a."),
        ("[`x`](../a/b.py#L3) and [y](../z)", "[`x`](R/blob/main/a/b.py#L3) and [y](R/blob/main/z)", "`x` and y"),
        *[
            (same, same, same)
            for same in ("[a](params.md)", "[b](#reference)", "[c](https://d/../e)", "![d](../d.png)", "f(../x)")
        ],
    ],
)
def test_links_that_leave_docs_lead_to_the_repository(markdown, with_repository, without):
    assert hooks.outside(markdown, "R") == with_repository
    assert hooks.outside(markdown, None) == without


# --------------------------------------------------------------------------------------------------------------- browser
@pytest.mark.parametrize("page", PAGES)
def test_a_page_on_disk_fits_a_phone_and_asks_nobody(browser, site, page):
    browser.get((site / f"{page}.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") == PHONE["width"]
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [address for address in asked if not address.startswith("file:")] == []
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_search_works_on_disk(browser, site):
    browser.get(f"{(site / 'index.html').as_uri()}?q=softmax")
    found = "return [...document.querySelectorAll('.md-search-result__link')].map(link => link.pathname)"
    paths = WebDriverWait(browser, PATIENCE).until(lambda driver: driver.execute_script(found))
    assert str(site / "fidelity.html") in paths
    assert browser.find_elements(By.CSS_SELECTOR, "iframe[hidden]")
