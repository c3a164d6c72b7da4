"""Networks through `torch.compile`: the same lists, for later catalogs too."""

import functools

import pyarrow as pa
import pytest
import torch
from fastapi.testclient import TestClient
from torch._dynamo.utils import counters

from hf_genrec import Recommender
from hf_genrec.serving.compiled import compile_networks
from hf_genrec.serving.server.app import create_app
from hf_genrec.serving.server.settings import ServerSettings
from invariants.model import NUM_ITEMS, make_item_to_item, make_model, make_sasrec, tiny_config
from served import assert_soon


torch_compile = torch.compile
ITEM_IDS = [f"item {number}" for number in range(NUM_ITEMS)]
HISTORIES = [["item 3", "item 5"], ["item 11"], [], [f"item {number}" for number in range(9)]]


def shop(model):
    return Recommender(model, pa.table({"item_id": ITEM_IDS}), top_k=5)


@pytest.fixture
def asked(monkeypatch):
    """What `torch.compile` is asked for, which here hands networks back as they are."""
    calls = []

    def keep(network, *, dynamic, recompile_limit, isolate_recompiles):
        calls.append((network.__name__, dynamic, recompile_limit, isolate_recompiles))
        return network

    monkeypatch.setattr(torch, "compile", keep)
    return calls


def test_encoder_and_step_of_a_search_are_compiled_for_any_size(asked):
    recommender = shop(make_model(tiny_config()))
    before = recommender.recommend(HISTORIES)

    assert recommender.compile() is recommender

    assert asked == [("_call_impl", True, 32, True), ("t5_step", True, 32, True)]
    assert recommender.recommend(HISTORIES) == before


def test_the_encoder_of_a_model_over_items_is_compiled(asked):
    assert compile_networks(make_sasrec()) == ["SASRecForItemGeneration"]
    assert [name for name, *_ in asked] == ["_call_impl"]


def test_a_later_catalog_shares_what_is_compiled(asked):
    recommender = shop(make_model(tiny_config()))
    recommender.compile()
    recommender.model.search_step = step = functools.partial(recommender.model.search_step)  # as compiled ones differ

    recommender.catalog.remove(["item 7"])

    assert recommender.model.search_step is step
    assert recommender.model.encoder._compiled_call_impl is not None
    assert "item 7" not in recommender.recommend(["item 3"], top_k=NUM_ITEMS - 1).item_ids


def test_a_wide_search_leaves_the_compiled_step(monkeypatch):
    monkeypatch.setattr("hf_genrec.modeling.modeling_latte.ROWS_AT_A_TIME", 14)
    recommender, widths = shop(make_model(tiny_config())), []
    step, before = recommender.model.search_step, recommender.recommend(HISTORIES[:2], num_beams=8)
    recommender.model.search_step = lambda *given: widths.append(tuple(given[1].shape[:2])) or step(*given)

    for num_beams in (7, 8):
        found = recommender.recommend(HISTORIES[:2], num_beams=num_beams)

    assert (2, 7) in widths
    assert (2, 8) not in widths
    assert found == before


def test_without_a_compiler_the_error_says_so(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", lambda network, *, isolate_recompiles, **_: fail)

    with pytest.raises(RuntimeError, match="torch cannot compile here: No working C.. compiler found. On a CPU"):
        shop(make_model(tiny_config())).compile()


def test_an_older_torch_is_named(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network, *, dynamic: network)

    with pytest.raises(RuntimeError, match=f"torch {torch.__version__.split('+')[0]}.* does not: update it"):
        compile_networks(make_model(tiny_config()))


def test_a_model_in_closed_form_has_nothing_to_compile(asked):
    assert compile_networks(make_item_to_item()) == asked == []


def test_the_server_sets_its_threads_before_a_model_is_loaded():
    threads, seen = torch.get_num_threads(), []
    load = lambda: seen.append(torch.get_num_threads()) or shop(make_sasrec())  # noqa: E731
    try:
        with TestClient(create_app(load, ServerSettings(threads=3))):
            assert_soon(lambda: seen == [3])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow  # a minute for each, and a compiler of C++
@pytest.mark.parametrize("make", [lambda: make_model(tiny_config(num_latent_tokens=2)), make_sasrec])
def test_compiled_networks_list_the_same_items_without_a_graph_break(make):
    recommender = shop(make())
    before, num_frames = recommender.recommend(HISTORIES), counters["frames"]["ok"]

    recommender.compile()
    after = recommender.recommend(HISTORIES)

    assert after.item_ids == before.item_ids
    for scores, expected in zip(after.scores, before.scores, strict=True):
        assert list(scores) == pytest.approx(list(expected), abs=1e-5)
    assert counters["frames"]["ok"] > num_frames + 1
    assert not counters["graph_break"]


@pytest.mark.slow  # half a minute, although the traced operators run as they are
def test_other_numbers_of_users_and_beams_compile_nothing_more(monkeypatch):
    monkeypatch.setattr(
        torch, "compile", lambda network, *, isolate_recompiles, **how: torch_compile(network, backend="eager", **how)
    )
    recommender = shop(make_model(tiny_config())).compile()
    num_frames = counters["frames"]["total"]

    for num_users, num_beams in ((5, 7), (9, 11), (1, 12), (1, 13)):
        recommender.recommend((HISTORIES * 3)[:num_users], num_beams=num_beams)

    assert counters["frames"]["total"] == num_frames
