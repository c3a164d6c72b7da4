"""
How fast the page of the Space is for a visitor: opened, and after a click, in a real browser.

    python scripts/evidence/benchmark_space.py RUN
    python scripts/evidence/benchmark_space.py me/latte-beauty --visits 10 --output page.json

The Space is started as on the Hub, in a process of its own. Each visit opens the page with a history of random items
and adds the first recommendation that it lacks, again and again; a click is timed inside the page, until the next
frame after the new list is there. Beside it stands `Recommender.recommend` for the same histories with the
page's settings, in this process: what is above it is drawing and the way through the server. Needs the packages
`gradio` and `playwright`, and chromium.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from benchmark_decoding import machine
from hf_genrec import Recommender
from hf_genrec.files import write_json


SPACE = Path(__file__).resolve().parents[2] / "spaces_demo"
TOP_K, NUM_BEAMS = 10, 50  # what the page begins with
NUM_FIRST = 5  # items of a visit's first history; the page's own examples have fewer
LISTED = "[...document.querySelectorAll('#ranked li[data-id]')].map(row => row.dataset.id)"
CLICK = """number => new Promise((done, failed) => {
  setTimeout(() => failed(new Error('no new list in 20 seconds')), 20000);
  const list = () => document.querySelector('#ranked').innerHTML;
  const length = () => document.querySelectorAll('#history li').length;
  const before = list(), num_items = length(), start = performance.now();
  const shown = () => requestAnimationFrame(() => done(performance.now() - start));
  const watch = new MutationObserver(() => {
    if (list() !== before && length() > num_items) { watch.disconnect(); shown(); }
  });
  watch.observe(document.body, {childList: true, subtree: true, characterData: true});
  document.querySelectorAll('#ranked button[data-action=add]')[number].click();
})"""


def main() -> None:
    arguments = parse_arguments()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("The page is measured in a browser: install chromium (apt-get install chromium).")
    recommender = Recommender.from_pretrained(arguments.run, num_beams=NUM_BEAMS, device="cpu")
    random, item_ids = np.random.default_rng(arguments.seed), list(recommender.item_ids)
    histories = [random.choice(item_ids, NUM_FIRST, replace=False).tolist() for _ in range(arguments.visits)]
    with space_of(arguments.run) as (address, seconds_to_start), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        visits = [visit(browser, address, items, arguments.clicks) for items in tqdm(histories, desc="Visits")]
        browser.close()
    called = [time_calls(recommender, visited["histories"]) for visited in visits]
    report = report_of(visits, called, seconds_to_start) | {"num_items": len(item_ids)}
    report |= {"model": recommender.model.config.model_type, "num_beams": NUM_BEAMS, "top_k": TOP_K}
    report |= {"machine": machine(torch.device("cpu")) | {"gradio": version("gradio")}}
    Console().print(table_of(report))
    write_json(report, arguments.output)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder or Hub repository to show")
    parser.add_argument("--visits", type=int, default=5, help="times that the page is opened (default 5)")
    parser.add_argument("--clicks", type=int, default=8, help="items added in a visit (default 8)")
    parser.add_argument(
        "--output", type=Path, default=Path("scripts/evidence/records/space_speed.json"), help="JSON file"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the histories")
    return parser.parse_args()


@contextmanager
def space_of(run: str) -> Iterator[tuple[str, float]]:
    """The address of a running Space, and the seconds it took until it answered."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    shown = str(Path(run).resolve()) if Path(run).is_dir() else run
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "HF_GENREC_REPO": shown}
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "app.py"], cwd=SPACE, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        while not answers(address):
            if process.poll() is not None:
                raise SystemExit(f"The Space did not start:\n{process.communicate()[1].decode()}")
            time.sleep(0.1)
        yield address, time.perf_counter() - start
    finally:
        process.terminate()
        process.wait(20)


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except OSError:
        return False
    return True


def visit(browser: Browser, address: str, items: list[str], num_clicks: int) -> dict[str, Any]:
    """Milliseconds to the first list and of each click, and the history behind each click's list."""
    context = browser.new_context()
    page = context.new_page()
    start = time.perf_counter()
    page.goto(address)
    page.wait_for_selector("#ranked li[data-id]")
    opened = 1000 * (time.perf_counter() - start)
    page.goto(f"{address}?items={','.join(items)}")
    page.wait_for_function("num => document.querySelectorAll('#history li').length === num", arg=len(items))
    clicks, histories = [], []
    for _ in range(num_clicks):
        listed = page.evaluate(LISTED)
        number = next(place for place, item in enumerate(listed) if item not in items)
        items = [*items, listed[number]]
        clicks.append(page.evaluate(CLICK, number))
        histories.append(items)
    context.close()
    return {"open_ms": opened, "click_ms": clicks, "histories": histories}


def time_calls(recommender: Recommender, histories: list[list[str]]) -> list[float]:
    """Milliseconds of the Python call for each history."""
    milliseconds = []
    for history in histories:
        start = time.perf_counter()
        recommender.recommend([history], top_k=TOP_K)
        milliseconds.append(1000 * (time.perf_counter() - start))
    return milliseconds


def report_of(visits: list[dict], called: list[list[float]], seconds_to_start: float) -> dict[str, Any]:
    """Medians and the slowest; the first call of a process is not counted, on neither side."""
    clicks = [value for found in visits for value in found["click_ms"]][1:]
    calls = [value for found in called for value in found][1:]
    opened = [found["open_ms"] for found in visits]
    middle = {"open_ms": opened, "click_ms": clicks, "recommend_ms": calls}
    report: dict[str, Any] = {"seconds_to_start": round(seconds_to_start, 2), "visits": len(visits)}
    for name, values in middle.items():
        report[name] = {"median": round(statistics.median(values), 1), "max": round(max(values), 1)}
    report["click_over_recommend"] = round(report["click_ms"]["median"] / report["recommend_ms"]["median"], 2)
    return report | {"clicks": len(clicks)}


def table_of(report: dict[str, Any]) -> Table:
    table = Table("milliseconds", "median", "slowest", title=f"The page of {report['num_items']:,} items")
    for name, title in (("open_ms", "page open to first list"), ("click_ms", "click to new list")):
        table.add_row(title, f"{report[name]['median']:,.0f}", f"{report[name]['max']:,.0f}")
    calls = report["recommend_ms"]
    table.add_row("recommend() alone", f"{calls['median']:,.0f}", f"{calls['max']:,.0f}")
    return table


if __name__ == "__main__":
    main()
