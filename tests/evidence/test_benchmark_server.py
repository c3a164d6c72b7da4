"""The load test of the server, at a size at which its figures mean nothing."""

import asyncio

import pytest

from hf_genrec import Recommender
from saved_folders import ITEM_IDS, make_folder
from served import served
from server_results import onnx_blocks, server_blocks


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
        script.run_clients(address, histories, clients=3, seconds=2.0, check=lambda place, answer: places.add(place))
    )

    assert found["outcomes"] == {"200": len(found["milliseconds"])}
    assert places == set(range(7))
    assert script.batches_of(address)[0] == len(found["milliseconds"])
    cell = {"mode": "one by one", "clients": 3, "users_per_batch": 1.5}
    cell |= script.middle_of([script.figures_of(found), script.figures_of(found)])
    assert cell["outcomes"] == {"200": 2 * len(found["milliseconds"])}
    machine = {"device": "x86_64", "threads": 2}
    load = {"cells": [cell], "seconds": 10, "turns": 3, "machine": machine}
    soak = {"seconds": 600, "requests": 12_345, "mb_per_hour": 0.25, "rss_mb": {"first": 9, "last": 9, "most": 10}}
    soak |= {"outcomes": {"200": 12_340, "504": 5}}
    sigterm = {"clients": 64, "answered": 461, "lost": 0}
    page = "\n".join(
        server_blocks({"num_items": 29, "model": "latte", "load": load, "sigterm": sigterm, "soak": soak})
    )
    assert "| 3 | one by one |" in page
    assert "Of 461 requests of 64 clients" in page
    assert "10 minutes, 12,345 requests, 5 of them answered 504: resident" in page
    assert server_blocks(None) == []


def test_answers_during_changes_of_the_catalog_are_those_of_the_version_they_name(script, address):
    histories = [[item_id] for item_id in ITEM_IDS[:7]]

    found = asyncio.run(script.swapped(address, histories, num_swaps=6, seconds=0.3))

    assert (found["swaps"], found["failed"], found["failed changes"], found["wrong"]) == (6, 0, 0, 0)
    assert found["answers"] > 0
    machine = {"device": "x86_64", "threads": 2}
    page = server_blocks({"num_items": 29, "model": "latte", "swaps": found | {"machine": machine}})[-1]
    assert "6 changes of" in page
    assert "0 answers were not those" in page


def test_table_of_exported_graphs_shows_quality_of_trained_models_only():
    times = {"torch": 4.0, "onnx": 1.25, "int8": 0.75}
    cell = {"name": "rpg", "equal_onnx": 1000, "ms_1": times, "ms_64": times}
    cell |= {"overlap_int8": 0.9485, "megabytes": {"model": 6.9, "model_int8": 4.4}}
    figures = {
        "cells": [cell],
        "num_items": 29,
        "users": 1000,
        "ndcg_users": 5,
        "machine": {"device": "x", "threads": 1},
    }

    table = onnx_blocks(figures)[2].splitlines()

    assert table[2].startswith("| rpg | 1,000 | 4.0 | 1.2 | 0.8 | 4.0 |")
    assert table[2].endswith("| – | – | 0.949 | 6.9 | 4.4 |")
    assert onnx_blocks(None) == []
