"""A report's page in a headless Chromium: it is drawn, legible and usable, and asks no network."""

import json
import time

import pytest

import eva_fast
from tests.reporting.browser import SECONDS, chromium
from tests.reporting.runs import line, make_run

pytest.importorskip("bokeh", reason="pip install 'eva-fast[report]'")
pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror=boom()> $$x^2$$"
# Everything below runs in the page. `deep` looks into shadow roots, where Bokeh draws.
HELP = """
const deep = (root, what) => [...root.querySelectorAll(what)].concat(
  ...[...root.querySelectorAll("*")].filter((e) => e.shadowRoot).map((e) => deep(e.shadowRoot, what)));
const rgb = (name) => {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
};
const pixels = (plot, colour) => {
  let count = 0;
  for (const canvas of deep(plot, "canvas")) {
    if (!canvas.width || !canvas.height) continue;
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    for (let i = 0; i < data.length; i += 4)
      if (data[i + 3] > 60 && [0, 1, 2].every((c) => Math.abs(data[i + c] - colour[c]) < 9)) count++;
  }
  return count;
};
const shown = (e) => e.offsetParent !== null && !e.closest(".hidden, noscript, script, style");
"""
DRAWN = """return [...document.querySelectorAll(".plot")].map(
  (plot) => [0, 1].map((run) => pixels(plot, rgb(`--run-${run}`))))"""
PICTURES = """return [...document.querySelectorAll(".frames img")].filter(shown)
  .map((image) => image.dataset.step)"""
TOLD = """deep(document, ".bk-Tooltip").map(
  (tip) => [...tip.shadowRoot.children].map((part) => part.textContent).join(" ")).join(" ")"""
WIDER = """return [...document.querySelectorAll("body *")]
  .filter((e) => shown(e) && !e.parentElement.closest(".scroll, .zoom, .bar")
          && e.getBoundingClientRect().right > innerWidth + 0.5)
  .map((e) => e.outerHTML.slice(0, 200))"""
SMALL = """const found = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const e = walk.currentNode.parentElement;
  if (walk.currentNode.textContent.trim() && shown(e) && parseFloat(getComputedStyle(e).fontSize) < 12)
    found.push(e.outerHTML.slice(0, 200));
}
for (const plot of Bokeh.documents[0].roots())
  for (const axis of [...plot.below, ...plot.left])
    for (const size of [axis.major_label_text_font_size, axis.axis_label_text_font_size])
      if (parseFloat(size) < 12) found.push(size);
return found"""  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two, of which one was interrupted, skipped steps and went back."""
    folder = tmp_path_factory.mktemp("runs")
    steps = range(10, 401, 10)
    probes = [[{"step": s, "knn": s / k} for s in range(100, 401, 100)] for k in (9, 20)]
    turned = [line(s, lr=2e-4, seed=1, skipped_steps=s // 200) for s in (*steps, *steps[20:])]
    starts = {"starts": [{"step": 0, "time": "2026-01-02T03:04:05+00:00"}, {"step": 100}]}
    a = make_run(folder / "a", [line(s) for s in steps], [100, 200, 400], probes[0])
    b = make_run(folder / HOSTILE, turned, [100, 300], probes[1], starts, lr=2e-4)
    return a, b


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        size(driver, 1400)
        driver.get(eva_fast.report(runs).as_uri())
        wait(driver, "return document.documentElement.dataset.drawn === 'yes'")
        wait(driver, all_drawn)
        yield driver


def look(driver, script):
    return driver.execute_script(HELP + script)


def size(driver, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def scheme(driver, name):
    feature = {"name": "prefers-color-scheme", "value": name}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def wait(driver, what):
    end = time.monotonic() + SECONDS
    while True:
        found = what(driver) if callable(what) else look(driver, what)
        if found:
            return
        assert time.monotonic() < end, (what, look(driver, DRAWN))
        time.sleep(0.1)


def all_drawn(driver):
    """Whether each chart has a curve of each run, in its colour."""
    found = look(driver, DRAWN)
    return len(found) == 8 and all(count > 40 for chart in found for count in chart)


@pytest.mark.parametrize("width", [1400, 400])
def test_legible_and_no_wider_than_the_screen(page, width):
    size(page, width)
    wait(page, f"return innerWidth === {width} && document.documentElement.scrollWidth === {width}")
    wait(page, all_drawn)
    assert look(page, WIDER) == []
    assert look(page, SMALL) == []
    columns = "return getComputedStyle(document.querySelector('.charts')).gridTemplateColumns"
    assert len(look(page, columns).split()) == (3 if width == 1400 else 1)


def test_dark_and_light(page):
    light = look(page, "return [rgb('--run-0'), rgb('--ink')]")
    scheme(page, "dark")
    assert look(page, "return [rgb('--run-0'), rgb('--ink')]") != light
    wait(page, all_drawn)
    scheme(page, "light")
    wait(page, all_drawn)


def test_the_slider_moves_the_pictures(page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    slider = page.find_element(By.ID, "time")
    seen = [look(page, PICTURES)]
    for _ in range(4):
        slider.send_keys(Keys.ARROW_LEFT)
        seen.append(look(page, PICTURES))
    # of each run the last one that it had drawn by then
    assert seen == [["400", "300"], ["200", "300"], ["200", "100"], ["100", "100"], ["100", "100"]]
    assert slider.get_attribute("aria-valuetext") == "step 100"
    page.find_element(By.ID, "play").send_keys(Keys.ENTER)
    wait(page, lambda page: look(page, PICTURES) == ["400", "300"])
    sizes = look(page, "return [...document.images].map((i) => [i.complete, i.naturalWidth])")
    assert sizes == [[True, 940]] * 5


def test_runs_are_hidden_and_the_axis_is_chosen(page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    box = page.find_element(By.CSS_SELECTOR, "input[name=run][value='1']")
    box.send_keys(Keys.SPACE)
    wait(page, DRAWN.replace("return ", "return (") + ").every(([a, b]) => a > 40 && b === 0)")
    box.send_keys(Keys.SPACE)
    for axis, words in (
        ("time", "minutes of training"),
        ("images", "images seen"),
        ("step", "step"),
    ):
        page.find_element(By.CSS_SELECTOR, f"input[value={axis}]").send_keys(Keys.SPACE)
        label = "return Bokeh.documents[0].roots().every((p) => p.below[0].axis_label === "
        assert look(page, f"{label}{json.dumps(words)})")
        wait(page, all_drawn)


def test_what_is_told_under_the_pointer_is_text(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    plot = page.find_element(By.CSS_SELECTOR, ".plot")
    ActionChains(page).move_to_element(plot).perform()
    wait(page, f"return {TOLD}.includes({json.dumps(HOSTILE)})")
    made = "return deep(document, 'img[src=x], mjx-container').length"
    assert look(page, made) == 0


def test_paper_is_light_and_shows_all(page):
    scheme(page, "dark")
    look(page, "dispatchEvent(new Event('beforeprint'))")
    assert look(page, "return [document.querySelector('details').open, rgb('--ink')[0]]") == [
        True,
        22,
    ]
    wait(page, all_drawn)
    look(page, "dispatchEvent(new Event('afterprint'))")
    scheme(page, "light")


def test_nothing_went_wrong_and_nothing_was_asked_of_a_network(page):
    """The last one: of all that the others did."""
    said = [e for e in page.get_log("browser") if e["level"] not in ("INFO", "DEBUG")]
    assert [e for e in said if e["source"] != "rendering"] == []  # that is of reading pixels here
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    asked = [e["request"]["url"] for e in sent if e["documentURL"].startswith("file:")]
    assert asked and all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    assert sum(url.startswith("file:") for url in asked) == 1
    assert all(e["method"] != "Network.webSocketCreated" for e in events)
