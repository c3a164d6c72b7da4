"""The load test of the server, at a size at which its figures mean nothing."""

import asyncio

import pytest

from hf_genrec import Recommender
from saved_folders import ITEM_IDS, make_folder
from served import served
from server_results import server_blocks


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("benchmark_server")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("benchmark") / "run")
    with served(Recommender.from_pretrained(folder, device="cpu")) as (address, _):
        yield address


def test_clients_count_what_they_got_and_tables_show_it(script, address):
    histories = [[item_id] for item_id in ITEM_IDS[:7]]
    places = set()

    found = asyncio.run(
        script.run_clients(address, histories, clients=3, seconds=0.3, check=lambda place, answer: places.add(place))
    )

    assert found["outcomes"] == {"200": len(found["milliseconds"])}
    assert set() < places <= set(range(7))  # all of them, were the machine not busy
    assert script.batches_of(address)[0] == len(found["milliseconds"])
    cell = {"mode": "one by one", "clients": 3, "users_per_batch": 1.5}
    cell |= script.middle_of([script.figures_of(found), script.figures_of(found)])
    assert cell["outcomes"] == {"200": 2 * len(found["milliseconds"])}
    machine = {"device": "x86_64", "threads": 2}
    load = {"cells": [cell], "seconds": 10, "turns": 3, "machine": machine}
    soak = {"seconds": 600, "requests": 12_345, "mb_per_hour": 0.25, "rss_mb": {"first": 9, "last": 9, "most": 10}}
    sigterm = {"clients": 64, "answered": 461, "lost": 0}
    page = "\n".join(
        server_blocks({"num_items": 29, "model": "latte", "load": load, "sigterm": sigterm, "soak": soak})
    )
    assert "| 3 | one by one |" in page
    assert "Of 461 requests of 64 clients" in page
    assert "10 minutes, 12,345 requests" in page
    assert server_blocks(None) == []
