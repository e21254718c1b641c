"""The MLflow UI, in a real browser: the runs, Table 5's seven rows side by side."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from browser_world import chromium
from pictures import mlflow_comparison
from tracking_world import SEEDS, free_port, miou, mlflow_server, table5, write_results
from vpd.config.params import Params
from vpd.tracking import compare_links, sync
from vpd.tracking.sync import runs_url

PATIENCE = 90
SAME_LINE = """
const middle = box => (box.top + box.bottom) / 2, label = arguments[0].getBoundingClientRect(), cells = new Map();
for (let table = arguments[0]; table && cells.size < 2; table = table.parentElement)
  for (const element of table.querySelectorAll("*")) {
    const box = element.getBoundingClientRect(), text = element.textContent.trim();
    if (!element.children.length && text && box.left >= label.right && Math.abs(middle(box) - middle(label)) < 10)
      cells.set(box.left, text);
  }
return [...cells].sort((a, b) => a[0] - b[0]).map(cell => cell[1]);
"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path / "browser") as driver:
        yield driver


def wait_for(driver: webdriver.Chrome, condition: Callable[[str], bool]) -> str:
    """The page's visible text, once ``condition`` holds for it."""

    def text(driver: webdriver.Chrome) -> str | bool:
        found = driver.execute_script("return document.body.innerText")
        return found if condition(found) else False

    return WebDriverWait(driver, PATIENCE, 0.2).until(text)


def line(driver: webdriver.Chrome, xpath: str) -> list[str]:
    """What stands to the right of a label, at its height, from left to right."""
    return driver.execute_script(SAME_LINE, driver.find_element(By.XPATH, xpath))


@pytest.fixture(scope="module")
def ui(tmp_path_factory) -> Iterator[tuple[str, Params]]:
    """Address of a server that shows the runs of Table 5, and their parameters."""
    folder, params = tmp_path_factory.mktemp("ui"), table5()
    write_results(folder / "results", params)
    store = f"sqlite:///{folder / 'mlflow.db'}"
    sync(folder / "results", params, store, folder / "data", folder / "checkpoints")
    with mlflow_server(folder, free_port(), store) as uri:
        yield uri, params


def test_the_ui_lists_the_runs_and_compares_the_rows_of_table_5(browser, ui, tmp_path):
    uri, params = ui
    names = [f"{name}/seed{seed}" for name in params.experiments for seed in SEEDS]
    browser.get(runs_url(uri, "1"))
    listed = wait_for(browser, lambda text: all(name in text for name in names))
    assert {"vpd-mini", "report", *names} <= set(listed.split("\n"))
    assert "Model registry" in listed
    assert "Traces\nSessions" not in listed  # the pages for language models

    mlflow_comparison(browser, compare_links(uri, params)["table5"])
    wait_for(browser, lambda text: "Comparing 7 Runs" in text and "final/miou_ss" in text and "vpd.key" in text)
    browser.save_screenshot(str(tmp_path / "compare.png"))
    shown = browser.find_element(By.TAG_NAME, "body").text.split("Run details")[0]
    assert "final/miou_ss_mean" in shown  # in the plot, by itself
    assert "train/epoch" not in shown
    assert line(browser, "//th[.='Run Name:']") == [f"{name}/seed0" for name in params.experiments]
    assert line(browser, "//th[.='table5']") == [row.label for row in params.tables["table5"].rows]
    for milestone in ("half", "final"):
        values = [f"{miou(params, name, 0, milestone):.4g}" for name in params.experiments]
        assert line(browser, f"//a[normalize-space(.)='{milestone}/miou_ss']") == values
    places = ["none", "none", "none", "mid", "down", "up", "down, up"]
    assert line(browser, "//th[.='model.attention.places']") == places
