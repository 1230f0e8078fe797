"""The report in headless Chromium: filters, links, keyboard, dark and light, phone width, no network.

Runs where Chromium and its driver are installed.
"""

import json
import shutil

import pytest

from tests.report_page import recorded_page

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, part of the dev extra")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the PATH"),
]
DESKTOP, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(recorded_page(), encoding="utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def look(browser, address, size=DESKTOP, scheme="light"):
    width, height = size
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size is PHONE}
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get("about:blank")
    browser.get(address)
    return browser


def shown(browser):
    rows = browser.find_elements(By.CSS_SELECTOR, "#table tbody tr")
    return [row.get_attribute("data-page") for row in rows if row.is_displayed()]


def focused(browser):
    return browser.switch_to.active_element


def in_view(browser, element):
    top = browser.execute_script("return arguments[0].getBoundingClientRect().top", element)
    return 0 <= top < DESKTOP[1]


def test_filters_search_and_reset(browser, address):
    look(browser, address)
    every = browser.execute_script("return rows.length")
    Select(browser.find_element(By.ID, "f-status")).select_by_visible_text("refuted")
    refuted = browser.execute_script("return rows.filter(r => !r.hidden).map(r => r.dataset.status)")
    assert 0 < len(refuted) < every and set(refuted) == {"refuted"}
    assert browser.find_element(By.ID, "count").text == f"{len(refuted)} of {every} shown"
    browser.find_element(By.ID, "q").send_keys("monotone contraction nowhere")
    assert browser.find_element(By.ID, "count").text == f"0 of {every} shown"
    browser.find_element(By.CSS_SELECTOR, "#filters button[type=reset]").click()
    WebDriverWait(browser, 5).until(lambda b: b.find_element(By.ID, "count").text == f"{every} of {every} shown")


def test_a_bar_of_the_matrix_filters_rows_and_pages(browser, address):
    look(browser, address)
    bar = browser.find_element(By.CSS_SELECTOR, ".stack .p-refuted")
    wanted = json.loads(bar.get_attribute("data-filter"))
    bar.click()
    assert bar.get_attribute("aria-pressed") == "true"
    assert len(shown(browser)) == int(bar.text)
    pages = browser.execute_script("return [...document.querySelectorAll('article')].filter(a => !a.hidden).length")
    assert pages == int(bar.text)
    sources = browser.execute_script("return rows.filter(r => !r.hidden).map(r => r.dataset.source)")
    assert set(sources) == {wanted["source"]}
    bar.click()
    assert bar.get_attribute("aria-pressed") == "false"


def test_a_link_leads_to_the_claim_even_if_the_filter_hides_it(browser, address):
    look(browser, address)
    link = browser.find_element(By.CSS_SELECTOR, '#table a[href="#trm-2-5-6"]')
    link.click()
    assert browser.current_url.endswith("#trm-2-5-6")
    page = browser.find_element(By.ID, "trm-2-5-6")
    assert in_view(browser, page) and "Counterexample" in page.text
    Select(browser.find_element(By.ID, "f-printed")).select_by_visible_text("refuted")
    browser.execute_script("arguments[0].click()", page.find_element(By.CSS_SELECTOR, 'a[href="#ours-s1"]'))
    target = browser.find_element(By.ID, "ours-s1")
    WebDriverWait(browser, 5).until(lambda b: target.is_displayed() and in_view(b, target))


def test_columns_sort(browser, address):
    look(browser, address)
    button = browser.find_element(By.CSS_SELECTOR, "#table th.n button")
    for order, wanted in (("ascending", sorted), ("descending", lambda v: sorted(v, reverse=True))):
        button.click()
        assert button.find_element(By.XPATH, "..").get_attribute("aria-sort") == order
        keys = [float(k) for k in browser.execute_script("return rows.map(r => r.children[5].dataset.key)")]
        assert keys == wanted(keys) and len(set(keys)) > 1


def test_everything_is_reached_by_keyboard(browser, address):
    look(browser, address)
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    assert focused(browser).text == "Skip to the claims"
    assert focused(browser).rect["x"] >= 0, "the skip link shows itself when it has the focus"
    focused(browser).send_keys(Keys.ENTER)
    body.send_keys("/")
    assert focused(browser).get_attribute("id") == "q"
    focused(browser).send_keys("trm.2.5.6", Keys.TAB, Keys.TAB, Keys.TAB, Keys.TAB)
    assert focused(browser).get_attribute("type") == "reset"
    for _ in range(6):
        focused(browser).send_keys(Keys.TAB)
    focused(browser).send_keys(Keys.TAB)
    assert focused(browser).tag_name == "a" and focused(browser).text.startswith("trm.")
    outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    target = focused(browser).get_attribute("href").partition("#")[2]
    focused(browser).send_keys(Keys.ENTER)
    assert browser.current_url.endswith(f"#{target}")
    summary = browser.find_element(By.CSS_SELECTOR, "article:not([hidden]) summary")
    before = summary.find_element(By.XPATH, "..").get_attribute("open")
    summary.send_keys(Keys.ENTER)
    assert summary.find_element(By.XPATH, "..").get_attribute("open") != before


def luminance(colour):
    channels = [int(c) / 255 for c in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


TEXTS = ("body", ".dim", "#table a", ".s-refuted.chip", ".s-proved.chip", ".s-recorded.chip", "dt")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast_in_both_schemes(browser, address, scheme):
    look(browser, address, scheme=scheme)
    paper = luminance(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert (paper > 0.5) == (scheme == "light")
    for selector in TEXTS:
        colour = browser.execute_script("return getComputedStyle(document.querySelector(arguments[0])).color", selector)
        low, high = sorted([paper, luminance(colour)])
        assert (high + 0.05) / (low + 0.05) >= 4.5, f"{selector} in the {scheme} scheme"


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_never_scrolls_sideways(browser, address, size):
    look(browser, address, size)
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= size[0]
    assert browser.execute_script("return innerWidth") == size[0]


def test_no_request_leaves_the_machine_and_no_script_complains(browser, address):
    browser.get_log("performance")
    browser.get_log("browser")
    look(browser, address)
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true; scrollTo(0, 1e7)")
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert address in urls
    assert {url.partition(":")[0] for url in urls} <= {"file", "data", "about"}
    assert browser.get_log("browser") == []
