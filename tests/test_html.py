"""report.html in a real browser: whole, in the paper's order, readable on a phone, and with every number's origin."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

from browser_world import chromium
from report_world import report_params, write_world
from vpd.config.reported import load_reported
from vpd.report.write import LARGE, WIDEST, data_uri

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
CONTRAST = """
const parse = text => text.match(/[\\d.]+/g).map(Number);
const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
return [...document.querySelectorAll(".badge, .results .quoted, .place, .run .what")].map(element => {
  let under = element, style = getComputedStyle(element);
  while (under.parentElement && parse(getComputedStyle(under).backgroundColor)[3] === 0) under = under.parentElement;
  const a = light(parse(style.color).slice(0, 3)), b = light(parse(getComputedStyle(under).backgroundColor).slice(0, 3));
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
});
"""


@pytest.fixture(scope="module")
def params():
    return report_params()


@pytest.fixture(scope="module")
def page(tmp_path_factory, params) -> Path:
    return write_world(tmp_path_factory.mktemp("world"), params)[0] / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


@pytest.fixture
def shown(browser, page) -> webdriver.Chrome:
    """The page at the size of a desk, light."""
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.set_window_size(1400, 1000)
    browser.get(page.as_uri())
    return browser


def test_the_page_loads_whole_and_loads_nothing_else(shown, page):
    """No picture is broken, the console is silent, and the page asks for nothing beside itself."""
    widths = shown.execute_script("return [...document.images].map(image => [image.naturalWidth, image.alt])")
    assert len(widths) > 15
    assert [alt for width, alt in widths if not width] == []
    assert all(alt for _, alt in widths)
    assert shown.get_log("browser") == []
    assert shown.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"""(?:src|href)=["']https?:|<script""", text) == []
    assert page.stat().st_size < 6e6


def test_every_table_has_the_paper_s_rows_in_its_order(shown, params):
    tables = shown.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('table.results')].map(table => [table.dataset.table,"
        " [...table.querySelectorAll('tbody th')].map(head => head.textContent)]))"
    )
    reported = load_reported()
    assert list(tables) == [name for name in reported if name != "figure3"]
    for name, labels in tables.items():
        own = {reported[name].matching(row.match)[0]: row.label for row in params.tables[name].rows}
        assert labels == [own.get(index, reported[name].label(index)) for index in range(len(reported[name].rows))]


def test_every_measured_number_is_one_click_from_its_run(shown, params):
    links = shown.find_elements(By.CSS_SELECTOR, "table.results a.value")
    assert len(links) > 50
    targets = {link.get_attribute("href").partition("#")[2] for link in links}
    assert targets <= {f"run-{name}" for name in params.experiments}
    link = shown.find_element(By.CSS_SELECTOR, "#table5 a.value")
    shown.execute_script("arguments[0].click()", link)
    run = shown.find_element(By.CSS_SELECTOR, ".run:target")
    for recorded in ("mini/official/seg-empty/seed0", "c0dec0dec0dec0de", "da7ada7ada7ada7a", "cafecafecafecafe"):
        assert recorded in run.text
    assert params.resolve("seg-empty").digest() in run.text
    box = shown.execute_script("const b = arguments[0].getBoundingClientRect(); return [b.top, innerHeight]", run)
    assert 0 <= box[0] < box[1]


def test_links_lead_to_places_and_files_that_exist(shown, page):
    links = shown.execute_script("return [...document.querySelectorAll('a')].map(link => link.getAttribute('href'))")
    ids = set(shown.execute_script("return [...document.querySelectorAll('[id]')].map(element => element.id)"))
    assert [link for link in links if link.startswith("#") and link[1:] not in ids] == []
    assert {link for link in links if not link.startswith("#")} == set()  # the page may be mailed
    files = {name.text for name in shown.find_elements(By.CSS_SELECTOR, ".run dl dd:last-of-type code")}
    assert len(files) > 50
    assert [name for name in files if not (page.parent / name).is_file()] == []


def test_tables_fit_a_desk(shown):
    wide = "return [...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth).length"
    assert shown.execute_script(wide) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_on_a_phone_and_text_has_contrast(shown, page, scheme, tmp_path):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    shown.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    shown.get(page.as_uri())
    for details in shown.find_elements(By.CSS_SELECTOR, "details"):
        shown.execute_script("arguments[0].open = true", details)
    assert shown.execute_script("return [document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    assert min(shown.execute_script(CONTRAST)) >= 4.5
    assert shown.execute_script("return getComputedStyle(document.querySelector('nav')).position") == "sticky"


def test_rows_that_are_not_run_name_their_reason_and_can_be_hidden_without_a_script(shown):
    cell = shown.find_element(By.XPATH, "//section[@id='table3']//tr[th='VLT, default']/td[1]")
    mark = cell.find_element(By.TAG_NAME, "sup").text
    notes = shown.find_elements(By.CSS_SELECTOR, "#table3 .notes li")
    (reason,) = [note.text for note in notes if note.text.split()[0] == mark]
    assert "recurrent language model is not re-implemented" in reason
    quoted = shown.find_element(By.XPATH, "//tr[th='VLT, default']")
    own = shown.find_element(By.XPATH, "//tr[th='VPD, default']")
    assert quoted.is_displayed()
    shown.execute_script("document.getElementById('only-ours').click()")
    assert (quoted.is_displayed(), own.is_displayed()) == (False, True)


def test_large_pictures_are_packed_and_small_ones_kept(tmp_path):
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    Image.new("RGB", (40, 20), "red").save(small)
    noise = Image.effect_noise((2000, 400), 60)
    noise.save(large)
    assert large.stat().st_size > LARGE
    assert base64.b64decode(data_uri(small).partition("base64,")[2]) == small.read_bytes()
    kind, _, content = data_uri(large).partition(";base64,")
    (tmp_path / "packed.webp").write_bytes(base64.b64decode(content))
    with Image.open(tmp_path / "packed.webp") as image:
        assert (kind, image.size) == ("data:image/webp", (WIDEST, 320))
    assert data_uri(large) == data_uri(large)
