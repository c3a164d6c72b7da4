"""
The Space as a visitor meets it: started as a Space is, in Debian's chromium. Screenshots are kept in the folder named
by `HF_GENREC_SCREENSHOTS`, if it is set, else in pytest's own.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hf_genrec import Recommender, SemanticIds, save_recommender
from hf_genrec.evaluation.baselines import NEIGHBORS_NAME
from invariants.model import NUM_ITEMS, make_model, random_codes, tiny_config
from space_results import space_blocks


CHROMIUM = shutil.which("chromium")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING}: pip install gradio playwright"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium"),
]
HOSTILE = '<img src=x onerror="window.hacked=1"><b>bold</b>${window.hacked=2}{{this}}</title><script>hacked=3</script>'
ITEM_IDS = [f"i{number}" for number in range(NUM_ITEMS)]
TITLES = [f"Item number {number}" for number in range(NUM_ITEMS - 1)] + [HOSTILE]
# Contrast of every visible text with what is behind it, over all parents' opacities and colours; WCAG 2.2, 1.4.3.
FAINT_TEXTS = """() => {
  const parse = (text) => {
    const [r, g, b, a] = text.match(/[\\d.]+/g).map(Number);
    return {rgb: [r, g, b], a: a === undefined ? 1 : a};
  };
  const over = (top, alpha, under) => top.map((value, i) => alpha * value + (1 - alpha) * under[i]);
  const light = (rgb) => {
    const parts = rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const behind = (element) => {
    const chain = [];
    for (let e = element; e; e = e.parentElement) chain.unshift(parse(getComputedStyle(e).backgroundColor));
    return chain.reduce((under, {rgb, a}) => over(rgb, a, under), [255, 255, 255]);
  };
  const contrast = (element, color) => {
    let alpha = parse(color).a;
    for (let e = element; e; e = e.parentElement) alpha *= Number(getComputedStyle(e).opacity);
    const under = behind(element), [a, b] = [light(over(parse(color).rgb, alpha, under)), light(under)];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  const faint = [];
  const check = (element, color, text) => {
    const value = contrast(element, color);
    if (value < 4.5) faint.push(`${value.toFixed(2)} ${element.tagName}.${element.className.baseVal ?? element.className}: ${text}`);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let count = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !element.checkVisibility({visibilityProperty: true}) || /^(SCRIPT|STYLE|TITLE)$/i.test(element.tagName)) continue;
    const style = getComputedStyle(element);
    check(element, element.closest('svg') ? style.fill : style.color, text.slice(0, 30));
    count += 1;
  }
  for (const field of document.querySelectorAll('input, textarea'))
    if (field.placeholder) check(field, getComputedStyle(field, '::placeholder').color, field.placeholder);
  return {faint, count};
}"""  # noqa: E501
DEFAULTS = {"top_k": 10, "num_beams": 50, "exclude_seen": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    semantic_ids = SemanticIds(ITEM_IDS, random_codes().numpy(), 5, "keep")
    items = pa.table({"item_id": ITEM_IDS, "title": TITLES})
    target = tmp_path_factory.mktemp("space") / "run"
    save_recommender(target, make_model(tiny_config(num_latent_tokens=2)), semantic_ids, items)
    after = {"neighbors": [[(item + 1) % NUM_ITEMS] for item in range(NUM_ITEMS)], "similarity": [[1.0]] * NUM_ITEMS}
    table = pa.table({"item_id": ITEM_IDS, "num_interactions": range(NUM_ITEMS, 0, -1)} | after)
    pq.write_table(table.replace_schema_metadata({"decay": "0.35"}), target / NEIGHBORS_NAME)
    return target


@pytest.fixture(scope="module")
def recommender(folder):
    return Recommender.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def address(repository, folder, tmp_path_factory):
    """Where the Space answers."""
    with space_process(repository, folder, tmp_path_factory.mktemp("home"), ["app.py"]) as address:
        yield address


@contextmanager
def space_process(repository, folder, home, command):
    """The Space in a process of its own, in a folder without this package in sight."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    shutil.copytree(repository / "spaces_demo", home / "space", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"GRADIO_SERVER_PORT": str(port), "HF_HOME": str(home), "HF_GENREC_REPO": str(folder)}
    with (home / "log.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=home / "space", env=environment, stdout=log, stderr=log
        )
        try:
            yield _answering(f"http://127.0.0.1:{port}/", process, home / "log.txt")
        finally:
            process.terminate()
            process.wait(20)


def _answering(address: str, process: subprocess.Popen, log: Path) -> str:
    for _ in range(240):
        assert process.poll() is None, log.read_text(encoding="utf-8")
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(0.5)
        else:
            return address
    raise AssertionError(log.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """A function that opens the page in a fresh visit; complaints of the browser fail the test at its end."""
    visits, complaints = [], []

    def open_(query: str = "", *, width: int = 1280, height: int = 900):
        context = browser.new_context(viewport={"width": width, "height": height})
        visits.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith((address, "data:", "blob:")) else complaints.append(request.url))  # fmt: skip  # noqa: E501
        page.goto(address + query)
        page.wait_for_selector("#ranked li")
        return page

    yield open_
    for context in visits:
        context.close()
    assert complaints == []


@pytest.fixture
def keep(tmp_path):
    """A function that saves a screenshot of a whole page."""
    folder = Path(os.environ.get("HF_GENREC_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=folder / f"{name}.png", full_page=True)


def listed(page) -> list[str]:
    return page.eval_on_selector_all("#ranked li[data-id]", "rows => rows.map(row => row.dataset.id)")


def history_of(page) -> list[str]:
    return page.eval_on_selector_all("#history li .title", "rows => rows.map(row => row.textContent)")


def expect_list(page, wanted: list[str]) -> None:
    """Wait until the page shows these items, in this order."""
    rule = "ids => JSON.stringify([...document.querySelectorAll('#ranked li[data-id]')].map(r => r.dataset.id)) === JSON.stringify(ids)"  # noqa: E501
    page.wait_for_function(rule, arg=wanted)


def best(recommender, history, **changes):
    arguments = DEFAULTS | changes
    return recommender.recommend([history], **arguments).item_ids[0]


def add(page, query: str) -> None:
    page.locator("#query input").fill(query)
    page.locator("#found button", has_text=query).first.click()


def test_visitor_builds_a_history_and_gets_the_items_of_the_python_api(open_page, recommender):
    page = open_page()
    page.locator("#history button[data-action=clear]").click()
    expect_list(page, best(recommender, []))

    for number, so_far in ((12, ["i12"]), (7, ["i12", "i7"]), (20, ["i12", "i7", "i20"])):
        add(page, f"Item number {number}")
        expect_list(page, best(recommender, so_far))

    page.locator("#history button[data-action=earlier]").last.click()
    expect_list(page, best(recommender, ["i12", "i20", "i7"]))
    page.locator("#history button[data-action=remove]").first.click()
    expect_list(page, best(recommender, ["i20", "i7"]))
    assert history_of(page) == ["Item number 20", "Item number 7"]


def test_each_control_changes_what_it_says(open_page, recommender):
    page = open_page("?items=i3,i7,i11")
    expect_list(page, best(recommender, ["i3", "i7", "i11"]))
    page.locator("#settings button").first.click()

    def set_number(name: str, value: float) -> None:
        box = page.locator(f"#{name} input[type=number]")
        box.fill(str(value))
        box.press("Enter")
        box.blur()

    changes = {}
    for name, value in (("top_k", 4), ("num_beams", 2), ("diversity", 0.9)):
        set_number(name, value)
        changes[name] = value
        expect_list(page, best(recommender, ["i3", "i7", "i11"], **changes))
    page.locator("#exclude_seen input").uncheck()
    expect_list(page, best(recommender, ["i3", "i7", "i11"], exclude_seen=False, **changes))
    page.get_by_label("sum of paths").check()
    wanted = best(recommender, ["i3", "i7", "i11"], exclude_seen=False, latent_aggregation="sum", **changes)
    expect_list(page, wanted)
    page.wait_for_function("document.querySelector('#ranked .status').textContent.includes('sum of latents')")


def test_tree_is_drawn_with_latents_codes_and_items(open_page):
    page = open_page("?items=i3,i7")
    page.wait_for_function("document.querySelectorAll('#history li').length === 2")

    picture = page.locator("#tree svg")

    assert picture.is_visible()
    assert "latent" in picture.text_content()
    first = page.locator("#ranked li .title").first.text_content()
    assert f"1. {first}" in picture.text_content()
    page.locator("#ranked summary").first.click()
    assert page.locator("#ranked details").first.get_attribute("open") is not None


def test_title_with_html_is_shown_and_not_run(open_page, keep):
    page = open_page(f"?items=i{NUM_ITEMS - 1},i3")
    page.wait_for_function("document.querySelectorAll('#history li').length === 2")
    page.locator("#query input").fill("<img")
    page.locator("#found button").first.wait_for()

    assert history_of(page)[0] == HOSTILE
    assert page.locator("#found button").first.text_content() == f"+ {HOSTILE}"
    assert page.evaluate("window.hacked") is None
    assert page.locator("#history b, #found b, #ranked .title b").count() == 0
    keep(page, "hostile")


def test_unknown_ids_and_an_empty_history_are_told(open_page, recommender):
    page = open_page("?items=nonsense,<i>x</i>")
    page.locator("#history .notice").wait_for()

    assert "nonsense, <i>x</i>" in page.locator("#history .notice").text_content()
    assert "Nothing yet" in page.locator("#history").text_content()
    expect_list(page, best(recommender, []))
    page.locator("#query input").fill("no such item")
    page.locator("#found p").wait_for()
    assert "No title holds “no such item”" in page.locator("#found").text_content()


def test_ten_visitors_at_once_have_ten_histories(open_page, recommender):
    pages = [open_page(f"?items=i{number}") for number in range(10)]
    for number, page in enumerate(pages):
        page.wait_for_function("document.querySelectorAll('#history li').length === 1")
        page.locator("#query input").fill(f"Item number {number + 10}")
        page.locator("#found button").first.wait_for()

    for page in pages:
        page.evaluate("document.querySelector('#found button').click()")

    for number, page in enumerate(pages):
        expect_list(page, best(recommender, [f"i{number}", f"i{number + 10}"]))
        assert history_of(page) == [f"Item number {number}", f"Item number {number + 10}"]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_fits_its_window(open_page, keep, theme, width):
    page = open_page(f"?__theme={theme}&items=i3,i7", width=width)
    page.wait_for_function("document.querySelectorAll('#history li').length === 2")
    page.wait_for_timeout(800)  # the tree has grown

    assert page.evaluate("document.documentElement.scrollWidth") == width
    keep(page, f"{theme}_{width}")
    page.get_by_role("tab", name="About").click()
    page.locator("#about").wait_for()
    assert re.search(r"29 items", page.locator("#about").text_content())


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(open_page, theme):
    page = open_page(f"?__theme={theme}&items={','.join(ITEM_IDS[:25])}")  # more than the model reads
    page.wait_for_function("document.querySelectorAll('#history li').length === 25")
    page.locator("#settings button").first.click()
    page.locator("#query input").fill("Item number 1")
    page.locator("#found button").first.wait_for()
    page.locator("#ranked summary").first.click()
    page.wait_for_timeout(1500)  # the tree has grown

    found = page.evaluate(FAINT_TEXTS)

    assert found["faint"] == []
    assert found["count"] > 100
    page.get_by_role("tab", name="About").click()
    page.locator("#about h3").wait_for()
    assert page.evaluate(FAINT_TEXTS)["faint"] == []


def test_lists_say_that_they_are_computed(open_page, keep):
    page = open_page("?items=i3,i7")
    page.wait_for_function("document.querySelectorAll('#history li').length === 2")
    waiting = []
    page.route("**/queue/join*", lambda route: waiting.append(route))

    page.locator("#ranked button[data-action=add]").first.click()

    page.locator("#ranked .pending").wait_for()
    label = page.evaluate("getComputedStyle(document.querySelector('#ranked .pending h2'), '::after').content")
    assert "computing" in label
    page.wait_for_timeout(500)
    keep(page, "busy")
    waiting[0].continue_()
    page.wait_for_function("document.querySelectorAll('#history li').length === 3")
    page.wait_for_function("document.querySelectorAll('#ranked .pending').length === 0")


def test_page_says_that_the_model_is_loaded(browser, repository, folder, tmp_path):
    """A page whose model takes three seconds more."""
    code = "import time, served_model, app; load = served_model.load_model\n"
    code += "app.load_model = lambda name: (time.sleep(6), load(name))[1]\napp.main()\n"
    with space_process(repository, folder, tmp_path, ["-c", code]) as address:
        page = browser.new_page()
        page.goto(address)
        page.locator("#head [role=status]").wait_for()
        assert "Loading" in page.locator("#head").text_content()
        page.wait_for_selector("#ranked li", timeout=60_000)
        assert "29 items" in page.locator("#head").text_content()
        page.close()


def test_link_to_a_history_is_copied_and_opens_it(open_page):
    page = open_page("?items=i3,i7")
    page.wait_for_function("document.querySelectorAll('#history li').length === 2")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])

    page.locator("#history button[data-link]").click()

    page.locator("#history button", has_text="Link copied").wait_for()
    link = page.evaluate("navigator.clipboard.readText()")
    assert link.endswith("?items=i3,i7")
    other = open_page(link.partition("/?")[1].removeprefix("/") + link.partition("/?")[2])
    other.wait_for_function("document.querySelectorAll('#history li').length === 2")
    assert history_of(other) == ["Item number 3", "Item number 7"]


def test_item_knn_stands_beside_the_model(open_page):
    page = open_page("?items=i3,i7")
    page.wait_for_function("document.querySelectorAll('#history li').length === 2")

    listed_there = "rows => rows.map(row => row.dataset.neighbor)"
    found = page.eval_on_selector_all("#neighbors li", listed_there)

    assert found == ["i8", "i4", "i0", "i1", "i2", "i5", "i6", "i9", "i10", "i11"]


def test_the_page_is_timed_beside_the_python_call(load_script, monkeypatch, repository, folder, tmp_path):
    output = tmp_path / "speed.json"
    words = ["benchmark_space.py", str(folder), "--visits", "2", "--clicks", "3", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.syspath_prepend(str(repository / "scripts"))

    with ThreadPoolExecutor(1) as thread:  # where no other playwright runs
        thread.submit(load_script("benchmark_space").main).result()

    report = json.loads(output.read_text(encoding="utf-8"))
    assert (report["visits"], report["clicks"], report["num_items"]) == (2, 5, NUM_ITEMS)
    assert all(0 < report[name]["median"] <= report[name]["max"] for name in ("open_ms", "click_ms", "recommend_ms"))
    assert "| an item added, until the new list is there |" in space_blocks(report)[2]


def test_pinned_versions_are_ones_that_gradio_accepts(repository):
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines if "==" in line}
    wanted = [Requirement(line) for line in importlib.metadata.requires("gradio")]

    refused = [
        str(need)
        for need in wanted
        if (need.marker is None or need.marker.evaluate({"extra": ""}))
        and not need.specifier.contains(pinned.get(canonicalize_name(need.name), ""), prereleases=True)
        and canonicalize_name(need.name) in pinned
    ]

    assert refused == []
