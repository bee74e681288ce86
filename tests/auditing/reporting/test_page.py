"""The page of an audit, in a real browser: it renders, sorts, slides, and asks for nothing."""

import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drojko import audit
from drojko.ambiguity import KL, Wasserstein
from drojko.auditing.reporting.charts import Series, _ticks, line_chart
from drojko.auditing.reporting.page import render
from drojko.auditing.reporting.text import number

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def report():
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    X = X.iloc[:150, :5].rename(columns={"mean area": "<b>area & more</b>"})
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y[:150])
    return audit(
        model, X, y[:150], Wasserstein(), radii=[0, 0.1, 0.3], scale="standard", random_state=0
    )


@pytest.fixture(scope="module")
def driver():
    if BROWSER is None or DRIVER is None:
        pytest.skip("needs the packages chromium and chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        "disable-dev-shm-usage",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def page(report, driver, tmp_path):
    driver.set_window_size(1200, 900)
    driver.get(report.to_html(tmp_path / "audit.html").as_uri())
    return driver


def cells(driver, column):
    rows = driver.find_elements("css selector", "#by-size tbody tr")
    return [float(r.find_elements("tag name", "td")[column].get_dom_attribute("data-value"))
            for r in rows]  # fmt: skip


def panels(driver):
    found = driver.find_elements("css selector", "section[data-size]")
    return [panel.is_displayed() for panel in found]


def slide(driver, value):
    driver.execute_script(
        "const s = document.getElementById('size'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('input', {bubbles: true}));",
        value,
    )


def test_it_renders_with_a_clean_console(page, report):
    assert page.title == f"Audit of {report.name}"
    assert page.get_log("browser") == []
    table = report.table
    np.testing.assert_allclose(cells(page, 0), table["radius"])
    np.testing.assert_allclose(cells(page, 4), table["worst_case_risk"])
    lead = page.find_element("css selector", ".lead").text
    assert number(table["worst_case_risk"].iloc[-1]) in lead
    assert page.find_element("tag name", "svg").size["height"] > 100
    assert "<b>area & more</b>" in page.find_element("tag name", "main").text  # escaped


def test_the_slider_changes_what_is_shown(page):
    assert panels(page) == [False, False, True]
    slide(page, 1)
    assert panels(page) == [False, True, False]
    assert page.find_element("id", "size-value").text == "0.1"
    marked = page.find_elements("css selector", "#by-size tr.current")
    assert [row.get_dom_attribute("data-row") for row in marked] == ["1"]
    slider = page.find_element("id", "size")
    slider.send_keys("\ue014")  # the right arrow key: it works from the keyboard
    assert panels(page) == [False, False, True]


def test_headings_sort_in_both_directions(page):
    head = page.find_elements("css selector", "#by-size thead button")[4]
    head.send_keys("\n")
    assert cells(page, 4) == sorted(cells(page, 4))
    head.send_keys("\n")
    assert cells(page, 4) == sorted(cells(page, 4), reverse=True)
    sorted_heads = page.find_elements("css selector", "#by-size th[aria-sort]")
    assert [h.get_dom_attribute("aria-sort") for h in sorted_heads] == ["descending"]


@pytest.mark.parametrize("width", [400, 800, 1200, 1600])
def test_nothing_overflows_the_width_of_the_screen(page, width):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        wide = page.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def luminance(colour):
    rgb = np.array([float(v) for v in re.findall(r"[\d.]+", colour)[:3]]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark(page, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    found = page.execute_script(
        "const css = (e, p) => getComputedStyle(e).getPropertyValue(p);"
        "const body = css(document.body, 'background-color');"
        "const soft = css(document.querySelector('thead th'), 'background-color');"
        "return ['p.lead', '.quiet', 'td', 'thead th', 'a', 'dt', 'tbody th'].map("
        "q => [q, css(document.querySelector(q), 'color'), q === 'thead th' ? soft : body]);"
    )
    for name, ink, paper in found:
        one, two = sorted([luminance(ink), luminance(paper)])
        assert (two + 0.05) / (one + 0.05) >= 4.5, name
    backgrounds = {paper for _, _, paper in found}
    assert all((luminance(p) < 0.2) == (scheme == "dark") for p in backgrounds)


def test_print_shows_the_page_without_controls(page):
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not page.find_element("css selector", ".picker").is_displayed()
        table = page.find_element("css selector", "#by-size")
        assert table.is_displayed()
        page.set_window_size(718, 900)  # a sheet of A4 between its margins
        assert table.size["width"] <= page.execute_script("return innerWidth")  # nothing is cut off
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


class Outline(HTMLParser):
    """What a page refers to, and whether its pictures, headings and labels are in order."""

    def __init__(self, text):
        super().__init__()
        self.links, self.images, self.levels, self.ids = [], [], [], []
        self.open = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.links += [given[k] for k in ("src", "href") if k in given]
        if tag in ("img",) or (tag == "svg" and given.get("role") == "img"):
            self.images.append(given.get("alt") or given.get("aria-label"))
        if re.fullmatch(r"h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if "id" in given:
            self.ids.append(given["id"])
        if tag not in ("meta", "link", "img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_one_file_without_outside_resources_and_with_alternative_texts(report):
    text = render({report.name: report})
    found = Outline(text)
    assert found.open == []
    assert all(link.startswith("data:") for link in found.links)
    assert "http://" not in text
    assert "https://" not in text
    assert found.images
    assert all(found.images)
    assert found.levels[0] == 1
    assert max(np.diff(found.levels)) <= 1
    assert len(found.ids) == len(set(found.ids))
    assert '<html lang="en">' in text


def test_pages_of_other_kinds_of_audits(tmp_path):
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    X, y = X.iloc[:120, :4], y[:120]
    forest = RandomForestClassifier(10, random_state=0).fit(X, y)
    kl = render({"m": audit(forest, X, y, KL(), radii=[0.0, 0.1], random_state=0)})
    assert "mass ×" in kl
    table = X.iloc[:, :2].assign(kind=np.where(X.iloc[:, 2] > X.iloc[:, 2].median(), "a", "b"))
    numbers = Ridge().fit(table.iloc[:, :2], X.iloc[:, 3])
    report = audit(
        numbers, table.iloc[:, :2], X.iloc[:, 3], Wasserstein(), radii=[0.5], random_state=0
    )
    text = render({"m": report})
    assert "Accuracy</dt>" not in text
    digits, labels = load_digits(return_X_y=True)
    model = LogisticRegression(max_iter=100).fit(digits[:200] / 16, labels[:200])
    pictures = audit(
        model, digits[:100] / 16, labels[:100], Wasserstein(), radii=[0.3], images=(8, 8),
        random_state=0,
    )  # fmt: skip
    assert render({"m": pictures}).count("data:image/png;base64,") == 24


def test_numbers_and_charts():
    shown = [0.0, 1234.5, 0.10937, 1e-9, 3e7, np.nan, np.inf, "x"]
    assert [number(v) for v in shown] == ["0", "1234", "0.1094", "1e-09", "3e+07", "–", "∞", "x"]
    for low, high in [(0.0, 1.0), (-3.0, 17.0), (1e-9, 2e-9), (5.0, 5.0)]:
        ticks = _ticks(low, high)
        assert ticks[0] <= low + 1e-15
        assert ticks[-1] >= high - 1e-15
        assert len(ticks) <= 8
    series = [Series("a", "bound", np.array([1.0, np.inf])), Series("b", "attained", np.ones(2))]
    figure = line_chart(np.array([0.0, 1.0]), series, "t", "x", alt="a", top=2.0)
    assert "nan" not in figure
    assert "inf" not in figure.replace("info", "")
