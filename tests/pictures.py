"""Pictures of Snakemake's report, DVC's plots and MLflow's comparison for docs/compare.md, of the project in this folder.

Run as `make pictures` in a finished project; needs what `make test` needs.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import element_to_be_clickable
from selenium.webdriver.support.ui import WebDriverWait
from snakemake.assets import Assets

from browser_world import chromium
from tracking_world import free_port, mlflow_server
from vpd.config.params import Params, load_params
from vpd.tracking import compare_links

PATIENCE = 90
WIDTH, HEIGHT = 1400, 1100


def snakemake_report(driver: webdriver.Chrome, params: Params, folder: Path) -> None:
    """Open what the report says of the predictions of the first task's first experiment."""
    page = folder / "report.html"
    subprocess.run(["snakemake", "--report", str(page), "--config", f"scale={params.scale}"], check=True)
    driver.get(page.as_uri())
    name, experiment = next(iter(params.experiments.items()))
    for text in ("Predictions", experiment.task):
        _when(driver, element_to_be_clickable((By.XPATH, f"//a[.='{text}']"))).click()
    line = f"//*[.='{name}']/ancestor-or-self::tr//a"
    _when(driver, element_to_be_clickable((By.XPATH, line))).click()
    _when(driver, lambda driver: driver.execute_script("return [...document.images].some(i => i.naturalWidth > 300)"))


def dvc_plots(driver: webdriver.Chrome, params: Params, folder: Path) -> None:
    """Open the plots, with the libraries that Snakemake brings instead of those of a server."""
    subprocess.run(["dvc", "plots", "show", "--out", str(folder)], check=True)
    page = folder / "index.html"
    text = page.read_text(encoding="utf-8")
    for name in ("vega", "vega-lite", "vega-embed"):
        (folder / f"{name}.js").write_text(Assets.get_content(f"{name}/{name}.js"), encoding="utf-8")
        start = text.index(f"https://cdn.jsdelivr.net/npm/{name}@")
        text = text[:start] + f"{name}.js" + text[text.index('"', start) :]
    page.write_text(text.replace("<head>", '<head><meta charset="utf-8">', 1), encoding="utf-8")
    driver.get(page.as_uri())
    figure = _when(driver, lambda driver: driver.find_element(By.CSS_SELECTOR, "canvas, svg.marks"))
    driver.execute_script("arguments[0].scrollIntoView()", figure)


def mlflow_comparison(driver: webdriver.Chrome, link: str) -> None:
    """Open a comparison of runs, close the assistant beside it, and take out a parameter that says nothing of the rows."""
    driver.get(link)
    shown = "return document.body.innerText.includes('miou_ss_mean') && !!document.querySelector('.plot-container')"
    _when(driver, lambda driver: driver.execute_script(shown))
    close = (By.CSS_SELECTOR, "[data-component-id='mlflow.assistant.chat_panel.close']")
    _when(driver, element_to_be_clickable(close)).click()
    remove = (By.XPATH, "//span[.='evaluation.multi_scale']/following-sibling::span[contains(@class, 'item-remove')]")
    _when(driver, element_to_be_clickable(remove)).click()
    axes = "return [...document.querySelectorAll('.axis-title')].map(title => title.textContent).join()"
    _when(driver, lambda driver: "multi_scale" not in driver.execute_script(axes))


def take_pictures(out: Path) -> None:
    """Write a picture of each to ``out``."""
    params, store = load_params(), f"sqlite:///{Path('mlflow.db').absolute()}"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, chromium(Path(temporary) / "browser") as driver:
        driver.set_window_size(WIDTH, HEIGHT)
        snakemake_report(driver, params, Path(temporary))
        driver.save_screenshot(str(out / "snakemake.png"))
        dvc_plots(driver, params, Path(temporary))
        driver.save_screenshot(str(out / "dvc.png"))
        with mlflow_server(Path(temporary), free_port(), store) as uri:
            mlflow_comparison(driver, compare_links(uri, params)["table5"])
            driver.save_screenshot(str(out / "mlflow.png"))


def _when(driver: webdriver.Chrome, condition: Callable):
    return WebDriverWait(driver, PATIENCE, 0.2).until(condition)


if __name__ == "__main__":
    take_pictures(Path(sys.argv[1]))
