"""The built site in a real browser: nothing is fetched, formulas are drawn, nothing overflows.

``.ci/run`` builds the site and then runs this; elsewhere it needs ``docs/_build/html``.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "docs" / "_build" / "html"
DRIVER = shutil.which("chromedriver")
CHROME = shutil.which("chromium") or shutil.which("google-chrome")
PAGES = [
    "index", "start", "which_set", "radius", "certificate", "report", "sets/index", "sets/kl",
    "sets/wasserstein", "inner", "networks", "decisions", "large", "coming_from/dro", "questions",
    "glossary", "bibliography", "benchmarks", "architecture", "notebooks/network", "gallery/index",
    "gallery/plot_worst_case", "api/drojko.DROClassifier", "api/drojko.ambiguity.KL",
]  # fmt: skip
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason="the site is not built"),
    pytest.mark.skipif(not (DRIVER and CHROME), reason="no chromium and chromedriver"),
]


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROME
    for flag in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


def requests(browser):
    """Every address that the browser asked for since the last call."""
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            yield message["params"]["request"]["url"]


def open_page(browser, name, size, mode="light"):
    from selenium.webdriver.support.ui import WebDriverWait

    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = [{"name": "prefers-color-scheme", "value": mode}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
    browser.get((SITE / f"{name}.html").as_uri())
    drawn = "return !document.querySelector('.math') || !!document.querySelector('mjx-container')"
    WebDriverWait(browser, 30).until(lambda b: b.execute_script(drawn))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PAGES)
def test_pages_fetch_nothing_draw_formulas_and_do_not_overflow(browser, name, size):
    open_page(browser, name, size)
    asked = list(requests(browser))
    root = SITE.as_uri()
    assert asked
    assert [url for url in asked if not url.startswith((root, "data:", "about:", "blob:"))] == []
    wide = browser.execute_script(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert wide <= 0
    assert not browser.find_elements("css selector", "mjx-merror, [data-mjx-error]")
    severe = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert severe == []


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_can_be_read_in_both_modes(browser, mode):
    open_page(browser, "sets/kl", "desktop", mode)
    colours = browser.execute_script(
        "const s = getComputedStyle(document.querySelector('.bd-article p'));"
        "const b = getComputedStyle(document.body);"
        "return [s.color, b.backgroundColor]"
    )
    ink, paper = (sum(map(int, c.split("(")[1].rstrip(")").split(",")[:3])) for c in colours)
    assert (ink < paper) == (mode == "light")
    assert abs(ink - paper) > 300
