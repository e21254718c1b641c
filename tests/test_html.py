"""report.html, alone in a folder, in a real browser: whole, sortable, with every number's origin, readable anywhere."""

import base64
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from browser_world import chromium
from report_world import MACHINE, report_params, write_world
from vpd.config.reported import load_reported
from vpd.report.write import LARGE, WIDEST, data_uri

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
CONTRAST = """
const parse = text => text.match(/[\\d.]+/g).map(Number);
const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
return [...document.querySelectorAll(".badge, .results .quoted, .place, .sign, .made, .run .what, .run dt")].map(element => {
  let under = element, style = getComputedStyle(element);
  while (under.parentElement && parse(getComputedStyle(under).backgroundColor)[3] === 0) under = under.parentElement;
  const a = light(parse(style.color).slice(0, 3)), b = light(parse(getComputedStyle(under).backgroundColor).slice(0, 3));
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
});
"""


FONTS = """
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), sizes = [];
while (texts.nextNode())
  if (texts.currentNode.data.trim() && texts.currentNode.parentElement.checkVisibility())
    sizes.push(parseFloat(getComputedStyle(texts.currentNode.parentElement).fontSize));
return Math.min(...sizes);
"""  # in pixels, of the smallest text that is shown


@pytest.fixture(scope="module")
def params():
    return report_params()


@pytest.fixture(scope="module")
def results(tmp_path_factory, params) -> Path:
    return write_world(tmp_path_factory.mktemp("world"), params)[0]


@pytest.fixture(scope="module")
def page(tmp_path_factory, results) -> Path:
    return Path(shutil.copy(results / "report.html", tmp_path_factory.mktemp("alone")))


@pytest.fixture(scope="module")
def cells(results) -> pd.DataFrame:
    return pd.read_csv(results / "tables/cells.csv", keep_default_na=False, na_values={"value": "", "paper": ""})


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


@pytest.fixture
def shown(browser, page) -> Iterator[webdriver.Chrome]:
    """The page at the size of a desk, light; whatever a test does with it, the console stays silent."""
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    browser.set_window_size(1400, 1000)
    browser.get("about:blank")  # or else another address on the same page would not load it again
    browser.get(page.as_uri())
    yield browser
    assert browser.get_log("browser") == []


def test_the_page_loads_whole_and_loads_nothing_else(shown, page):
    """No picture is broken, the console is silent, and the page asks for nothing beside itself."""
    widths = shown.execute_script("return [...document.images].map(image => [image.naturalWidth, image.alt])")
    assert len(widths) > 15
    assert [alt for width, alt in widths if not width] == []
    assert all(alt for _, alt in widths)
    assert shown.get_log("browser") == []
    assert shown.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"""(?:src|href)=["']https?:|<(?:link|script)[^>]* src""", text) == []
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
        every = [own.get(index, reported[name].label(index)) for index in range(len(reported[name].rows))]
        assert labels == every + [row.label for row in params.tables[name].beyond]


def test_every_measured_number_is_one_click_from_its_run(shown, params):
    links = shown.find_elements(By.CSS_SELECTOR, "table.results a.value")
    assert len(links) > 50
    targets = {link.get_attribute("href").partition("#")[2] for link in links}
    assert targets <= {f"run-{name}" for name in params.experiments}
    open_drawer(shown, "#table5 a.value")
    run = shown.find_element(By.CSS_SELECTOR, ".run:modal")
    for recorded in ("mini/official/seg-empty/seed0", "c0dec0dec0dec0de", "da7ada7ada7ada7a", "cafecafecafecafe"):
        assert recorded in run.text
    assert params.resolve("seg-empty").digest() in run.text


def test_links_lead_to_places_and_files_that_exist(shown, results):
    links = shown.execute_script("return [...document.querySelectorAll('a')].map(link => link.getAttribute('href'))")
    ids = set(shown.execute_script("return [...document.querySelectorAll('[id]')].map(element => element.id)"))
    assert [link for link in links if link.startswith("#") and link[1:] not in ids] == []
    assert {link for link in links if not link.startswith("#")} == set()  # the page may be mailed
    names = "return [...document.querySelectorAll('.run dl dd:last-of-type code')].map(name => name.textContent)"
    files = set(shown.execute_script(names))
    assert len(files) > 50
    assert [name for name in files if not (results / name).is_file()] == []


def test_tables_fit_a_desk(shown):
    wide = (
        "return [...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth)"
        ".map(box => `${box.ariaLabel}: ${box.scrollWidth} instead of ${box.clientWidth} pixels`)"
    )
    assert shown.execute_script(wide) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_on_a_phone_and_text_has_contrast(shown, page, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    shown.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    shown.get(page.as_uri())
    for address in ("", "#run-seg-full"):
        shown.get(page.as_uri() + address)
        shown.execute_script("for (const spec of document.querySelectorAll('details')) spec.open = true")
        assert shown.execute_script("return [document.documentElement.scrollWidth, innerWidth]") == [390, 390]
        assert shown.execute_script(FONTS) >= 15
    drawer = shown.find_element(By.CSS_SELECTOR, ".run:modal")
    assert shown.execute_script("return arguments[0].scrollWidth - arguments[0].clientWidth", drawer) == 0
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


# ------------------------------------------------------------------------------------------------------ sorting, filter
def rows(shown, label: str, column: int = 0) -> list[str]:
    """Texts of a column of the shown rows of a table."""
    script = """return [...document.querySelector(`[aria-label="${arguments[0]}"]`).querySelectorAll("tbody tr:not([hidden])")]
        .map(row => row.cells[arguments[1]].textContent.trim())"""
    return shown.execute_script(script, label, column)


@pytest.mark.parametrize(("column", "name"), [(3, "value"), (5, "paper")])
@pytest.mark.parametrize("press", ["click", "keyboard"])
def test_a_numeric_column_is_sorted_by_value_with_missing_ones_last(shown, cells, column, name, press):
    head = shown.find_element(By.CSS_SELECTOR, f"[aria-label='Every number'] th:nth-child({column + 1})")
    button, own = head.find_element(By.TAG_NAME, "button"), cells.copy()
    own.loc[own["provenance"].isin(["quoted", "missing"]), "value"] = float("nan")
    shown.execute_script("""document.querySelectorAll("[aria-label='Every number'] tbody tr").forEach((row, index) => {
        row.cells[0].textContent = index; })""")
    for order in ("ascending", "descending", None):
        shown.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click() if press == "click" else button.send_keys(Keys.ENTER)
        by_value = own.sort_values(name, ascending=order != "descending", kind="stable", na_position="last")
        expected = (by_value if order else own).index
        assert rows(shown, "Every number") == [str(index) for index in expected]
        assert head.get_attribute("aria-sort") == order
    assert own[name].isna().any()


def test_a_text_column_is_sorted_by_alphabet_and_a_total_stays_last(shown, params):
    shown.execute_script(
        "document.querySelector(\"[aria-label='What every row costs'] th:nth-child(3) button\").click()"
    )
    assert rows(shown, "What every row costs", 2) == sorted(params.experiments)
    jobs = "[aria-label='Time by stage']"
    shown.execute_script(f'document.querySelector("{jobs} th:nth-child(2) button").click()')
    assert shown.find_elements(By.CSS_SELECTOR, f"{jobs} tr")[-1].text.startswith("all")


def test_every_table_can_be_sorted_and_every_long_one_filtered(shown):
    lacking = "return [...document.querySelectorAll('thead th:not(:has(button))')].filter(head => head.textContent)"
    assert shown.execute_script(lacking) == []
    boxes = [box.get_attribute("aria-label") for box in shown.find_elements(By.CSS_SELECTOR, ".filter input")]
    names = ("Every comparison", "Every number", "What every row costs", "Where the numbers come from")
    assert boxes == [f"Filter: {name}" for name in names]


def test_the_filter_hides_rows_that_lack_a_word(shown, cells):
    box = shown.find_element(By.CSS_SELECTOR, "[aria-label='Filter: Every number']")
    box.send_keys("SWIN counted")
    swin = (cells["row"] + cells["experiment"]).str.lower().str.contains("swin")
    expected = cells[swin & (cells["provenance"] == "counted")]
    assert len(expected) > 0
    assert rows(shown, "Every number", 1) == list(expected["row"])
    assert shown.find_element(By.CSS_SELECTOR, ".filter:has(+ [aria-label='Every number']) output").text == (
        f"{len(expected)} of {len(cells)} rows"
    )
    box.send_keys(" nosuchword")
    assert rows(shown, "Every number") == []
    box.clear()
    box.send_keys(" ")
    assert len(rows(shown, "Every number")) == len(cells)


# ------------------------------------------------------------------------------------------------------------- drawers
def open_drawer(shown, link: str, key: str = "") -> None:
    """Follow the first link that a selector finds, by click or key."""
    element = shown.find_element(By.CSS_SELECTOR, link)
    shown.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.send_keys(key) if key else element.click()


def opened(shown) -> tuple[list[str], str]:
    """Names of the open drawers, and the fragment of the address."""
    drawers = shown.find_elements(By.CSS_SELECTOR, ".run:modal")
    assert all(drawer.is_displayed() for drawer in drawers)
    return [drawer.get_attribute("id") for drawer in drawers], shown.execute_script("return location.hash")


def is_opened(shown, expected: tuple[list[str], str]) -> bool:
    """Whether the page comes to show these drawers at this address: it hears of a new fragment after the address has it."""
    try:
        return WebDriverWait(shown, 10, 0.05).until(lambda driver: opened(driver) == expected)
    except TimeoutException:
        pytest.fail(f"the drawers and the address are {opened(shown)}, not {expected}")


NAME = "run-seg-fast"
CLOSED, OPEN = ([], ""), ([NAME], f"#{NAME}")
LINK = f"[aria-label='What every row costs'] a[href='#{NAME}']"


@pytest.mark.parametrize("key", ["", Keys.ENTER])
@pytest.mark.parametrize("close", ["Escape", "button", "beside", "back"])
def test_a_drawer_opens_and_closes_by_mouse_and_keyboard(shown, key, close):
    assert is_opened(shown, CLOSED)
    open_drawer(shown, LINK, key)
    assert is_opened(shown, OPEN)
    focused = shown.switch_to.active_element
    assert focused.text == "Close"
    if close == "Escape":
        focused.send_keys(Keys.ESCAPE)
    elif close == "button":
        focused.send_keys(Keys.ENTER) if key else focused.click()
    elif close == "beside":
        webdriver.ActionChains(shown).move_by_offset(300, 500).click().move_by_offset(-300, -500).perform()
    else:
        shown.back()
    assert is_opened(shown, CLOSED)
    assert shown.switch_to.active_element.get_attribute("href").endswith(f"#{NAME}")
    open_drawer(shown, LINK, key)
    assert is_opened(shown, OPEN)


def test_a_drawer_has_an_address_that_survives_a_reload(shown, page):
    shown.get(f"{page.as_uri()}#{NAME}")
    assert is_opened(shown, OPEN)
    shown.refresh()
    assert is_opened(shown, OPEN)
    shown.execute_script("location.hash = 'run-seg-full'")
    assert is_opened(shown, (["run-seg-full"], "#run-seg-full"))
    for address in ("#table1", "#%", "#nosuchplace"):
        shown.execute_script("location.hash = arguments[0]", address)
        assert is_opened(shown, ([], address))


def test_every_name_of_an_experiment_in_a_table_opens_its_drawer(shown, params):
    script = "return [...document.querySelectorAll('td code, td a')].map(e => [e.textContent, e.closest('a')?.hash])"
    found = [(name, target) for name, target in shown.execute_script(script) if name in params.experiments]
    assert {name for name, _ in found} == set(params.experiments)
    assert [name for name, target in found if target != f"#run-{name}"] == []


def test_a_drawer_tells_all_of_its_experiment(shown, page, params, results):
    shown.get(f"{page.as_uri()}#run-seg-full")
    drawer = shown.find_element(By.ID, "run-seg-full")
    drawer.find_element(By.TAG_NAME, "summary").click()
    spec = params.resolve("seg-full")
    values = pd.read_csv(results / "tables/values.csv").query("experiment == 'seg-full' and metric == 'miou_ss'")
    assert " ".join(f"{value:.4g}" for value in values["value"]) in drawer.text
    for text in ("0" * 64, "da7a" * 16, "cafe" * 16, "c0ffee" * 6 + "abcd", MACHINE, "2023-11-14 22:14 UTC"):
        assert text in drawer.text
    for text in (f"lr: {spec.training.optimizer.lr}", "limit: 0.5", "dvc repro evaluate@seg-full"):
        assert text in drawer.text
    lines = drawer.find_elements(By.CSS_SELECTOR, "polyline")
    assert [len(line.get_attribute("points").split()) for line in lines] == [20, 20, 20]  # steps of each seed
    pictures = drawer.find_elements(By.TAG_NAME, "img")
    assert len(pictures) == 2
    assert all(picture.get_property("naturalWidth") and picture.is_displayed() for picture in pictures)


def test_every_drawer_shows_what_its_experiment_predicts_once(shown, page):
    for name in ("seg-full", "seg-up", "depth-fast"):  # the first in Figure 4, the others nowhere else
        shown.get(f"{page.as_uri()}#run-{name}")
        pictures = shown.find_elements(By.CSS_SELECTOR, f"#run-{name} img[alt*='ground truth']")
        assert [picture.is_displayed() and picture.get_property("naturalWidth") > 0 for picture in pictures] == [True]


def test_a_command_is_copied(shown, page):
    shown.get(f"{page.as_uri()}#run-seg-full")
    permissions = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    shown.execute_cdp_cmd("Browser.grantPermissions", permissions)
    shown.find_element(By.CSS_SELECTOR, ".run:modal .command button").click()
    copied = shown.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    choice = "--config scale=mini protocol=official"
    assert copied == f"snakemake --cores 2 {choice} -- results/mini/metrics/seg-full.json"


# ------------------------------------------------------------------------------------- origin, print, no script, attacks
def test_origins_of_numbers_differ_without_colour(shown, cells):
    script = """return [...document.querySelectorAll("[aria-label='Every number'] tbody tr")].map(row => [3, 5].map(column =>
        [...row.cells[column].querySelectorAll("[role=img]")].map(sign => sign.getAttribute("aria-label"))))"""
    for (here, paper), cell in zip(shown.execute_script(script), cells.itertuples(), strict=True):
        assert here == (["counted"] if cell.provenance == "counted" else [])
        assert paper == ([] if pd.isna(cell.paper) else ["quoted"])
    signs = {sign.text for sign in shown.find_elements(By.CSS_SELECTOR, ".legend [role=img]")}
    assert signs == {"#", "”"}
    italics = "return [...document.querySelectorAll('.results td.quoted')].every(cell => cell.querySelector('i'))"
    assert shown.execute_script(italics)


def test_the_head_names_commit_date_and_machine(shown):
    head = shown.find_element(By.CSS_SELECTOR, "header .made").text
    assert head == f"Trained 2023-11-14 22:14 UTC · commit c0ffeec0ffee · {MACHINE}"


def test_paper_shows_all_tables_whole_and_no_drawer(shown, page):
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    shown.get(f"{page.as_uri()}#{NAME}")
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    shown.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE | {"width": 718, "mobile": False})  # A4
    assert not shown.find_element(By.ID, NAME).is_displayed()
    cut = """return [...document.querySelectorAll("main > section .scroll")].filter(frame => frame.checkVisibility() &&
        (frame.scrollHeight > frame.clientHeight + 1 || frame.scrollWidth > innerWidth)).length"""
    assert shown.execute_script(cut) == 0
    assert shown.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_without_its_script_the_page_has_all_texts(shown, page, tmp_path, params):
    text = page.read_text(encoding="utf-8")
    (tmp_path / "plain.html").write_text(re.sub("<script>.*?</script>", "", text, flags=re.DOTALL), encoding="utf-8")
    shown.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    shown.get(f"{(tmp_path / 'plain.html').as_uri()}#{NAME}")
    drawers = shown.find_elements(By.CSS_SELECTOR, ".run")
    assert len(drawers) == len(params.experiments)
    assert all(drawer.is_displayed() for drawer in drawers)
    assert "Close" not in drawers[0].text
    top = shown.execute_script("return document.querySelector(':target').getBoundingClientRect().top")
    assert 0 <= top < PHONE["height"]
    assert shown.execute_script("return document.documentElement.scrollWidth") == 390


def test_a_script_that_gets_into_the_page_does_not_run(browser, page, tmp_path):
    attack = "<script>window.hit = 1</script><p onclick='hit = 1'></p><img src='x' onerror='window.hit = 1'>"
    text = page.read_text(encoding="utf-8").replace("<header>", f"<header>{attack}", 1)
    (tmp_path / "attacked.html").write_text(text, encoding="utf-8")
    browser.get((tmp_path / "attacked.html").as_uri())
    assert browser.execute_script("return [window.hit, document.querySelectorAll('thead button').length > 50]") == [
        None,
        True,
    ]
    refused = [entry["message"] for entry in browser.get_log("browser")]
    assert refused
    assert all("Content Security Policy" in message for message in refused)


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
    assert len(data_uri(large, 640)) < len(data_uri(large)) / 3
