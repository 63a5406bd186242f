"""In a real browser a report draws its plots, and its choices do what they say."""

import json

import pytest
from selenium.webdriver.support.wait import WebDriverWait

from recursia.report import page, record
from tests.helpers import browsers, records

pytestmark = pytest.mark.slow

# Of a plot: whether its canvases have anything but one colour.
IS_DRAWN = """
const canvases = (node) => [...node.querySelectorAll("*")].flatMap((each) =>
  [...(each.tagName === "CANVAS" ? [each] : []),
    ...(each.shadowRoot ? canvases(each.shadowRoot) : [])]);
return [...document.querySelectorAll("[data-plot]")].map((plot) => [plot.dataset.plot,
  canvases(plot).some((canvas) => {
    if (!canvas.width || !canvas.height) return false;
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return new Set(new Uint32Array(pixels.buffer)).size > 5;
  })]);
"""
LOSS = """
const plot = Bokeh.documents.map((each) => each.roots()[0])
  .find((each) => each.left[0].axis_label.startsWith(arguments[0]));
return {x: plot.below[0].axis_label, y: plot.left[0].axis_label, end: plot.x_range.end,
  top: plot.y_range.end,
  shown: plot.renderers.filter((each) => each.visible).map((each) => [each.name, each.tags[0]])};
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    for name, factor in (("one", 1.0), ("two", 1.1)):
        rows = [*records.training_rows(factor=factor), *records.validation_rows(factor=factor)]
        records.write(folder / name, rows)
    found = record.read([folder / "one", folder / "two"])
    (folder / "report.html").write_text(page.page(found, records.reading(), ""))
    return folder / "report.html"


@pytest.mark.parametrize("width", [400, 1280])
def test_plots_are_drawn_without_an_error_or_a_request(report, width):
    with browsers.page(report, width) as shown:
        drawn = dict(shown.execute_script(IS_DRAWN))
        assert len(drawn) > 10 and all(drawn.values()), drawn
        told = [row for row in shown.get_log("browser") if row["level"] in ("WARNING", "SEVERE")]
        assert not told
        events = [json.loads(row["message"])["message"] for row in shown.get_log("performance")]
        sent = [
            e["params"]["request"]["url"]
            for e in events
            if e["method"] == "Network.requestWillBeSent"
        ]
        assert [url for url in sent if not url.startswith(("data:", "blob:"))] == [report.as_uri()]
        size = shown.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert size[0] <= size[1]  # nothing sticks out


def test_choices_change_axes_units_and_runs(report):
    with browsers.page(report, 1280) as shown:
        click = lambda name, value: shown.execute_script(
            "document.querySelector(`input[name=${arguments[0]}][value=${arguments[1]}]`).click()",
            name,
            value,
        )

        def loss(unit="nats per token"):
            def settled(shown):
                found = shown.execute_script(LOSS, unit)
                return found if found["end"] and found["top"] else None

            return WebDriverWait(shown, 30).until(settled)

        before = loss()
        assert before["x"] == "steps" and {name for name, _ in before["shown"]} == {"one", "two"}
        click("x", "tokens")
        after = loss()
        assert after["x"] == "tokens" and after["end"] > 50 * before["end"]
        click("y", "bits")
        assert loss("bits per byte")["top"] > 1.3 * before["top"]
        click("run", "two")
        assert {name for name, _ in loss("bits per byte")["shown"]} == {"one"}
        click("tag", "raw")
        assert "raw" not in {tag for _, tag in loss("bits per byte")["shown"]}


def test_a_token_that_is_pointed_at_tells_its_numbers(report):
    with browsers.page(report, 1280) as shown:
        sides = shown.find_elements("css selector", ".text p")
        assert len(sides) == 2
        shown.execute_script("arguments[0].children[3].click()", sides[0])
        marked = shown.find_elements("css selector", ".text .on")
        assert len(marked) == 2 and marked[0].text == marked[1].text
        assert "nats, recursions" in shown.find_element("css selector", ".told").text
