"""Live catalog: any sequence of changes serves what a catalog built anew does; nothing that was published moves."""

import os
import signal
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from transformers import AutoModel, pipeline

from hf_genrec import Recommender
from hf_genrec.modeling.modeling_ensemble import EnsembleForItemGeneration
from hf_genrec.serving.catalog.files import current_number
from hf_genrec.serving.item_graph import build_item_graph
from invariants.model import make_sasrec
from live_shops import TEXTS, add_one, free_codes, model_of, rebuilt, shop_of
from saved_folders import make_folder


class CatalogMachine(RuleBasedStateMachine):
    """Adds, removes and rolls back at random; after each step the shop equals its rebuild."""

    kind = "latte"

    def __init__(self):
        super().__init__()
        self.shop = shop_of(self.kind)
        self.published = {}
        self.open = {1: set(self.shop.item_ids)}

    @precondition(lambda self: len(self.shop.item_ids) < 20)
    @rule()
    def add(self):
        item_id = f"new {len(self.shop.item_ids)}"
        version = add_one(self.shop, item_id)
        self.open[version.number] = self.open[version.parent] | {item_id}

    @precondition(lambda self: len(self.open[len(self.open)]) > 2)
    @rule(choice=st.randoms(use_true_random=False))
    def remove(self, choice):
        item_id = choice.choice(sorted(self.open[len(self.open)]))
        version = self.shop.catalog.remove([item_id])
        self.open[version.number] = self.open[version.parent] - {item_id}

    @rule(choice=st.randoms(use_true_random=False))
    def roll_back(self, choice):
        number = choice.randint(1, len(self.open))
        version = self.shop.catalog.rollback(number)
        self.open[version.number] = self.open[number]
        assert version.fingerprint == self.shop.catalog.versions()[number - 1].fingerprint

    @precondition(lambda self: set(self.shop.item_ids) - self.open[len(self.open)])
    @rule(choice=st.randoms(use_true_random=False))
    def bring_back(self, choice):
        item_id = choice.choice(sorted(set(self.shop.item_ids) - self.open[len(self.open)]))
        version = self.shop.catalog.add([{"item_id": item_id}])
        self.open[version.number] = self.open[version.parent] | {item_id}

    @invariant()
    def nothing_moved(self):
        codes = self.shop.model.item_codes.tolist() if self.shop.model.config.has_codes else [None] * 99
        now = {item_id: (row, codes[row]) for row, item_id in enumerate(self.shop.item_ids)}
        assert now | self.published == now
        self.published = now

    @invariant()
    def lists_and_masks_equal_those_of_a_catalog_built_anew(self):
        items = sorted(self.open[len(self.open)])
        anew, histories = rebuilt(self.shop), [items[:3], [], items[-1:]]
        found = self.shop.recommend(histories, top_k=20, exclude_seen=False)
        expected = anew.recommend(histories, top_k=20, exclude_seen=False)
        assert {*found.item_ids[0]} == set(items)
        assert found.item_ids == expected.item_ids
        torch.testing.assert_close(torch.tensor(found.scores), torch.tensor(expected.scores), atol=1e-4, rtol=1e-4)
        if self.shop.model.config.has_codes:
            tries = [shop.model.catalog for shop in (self.shop, anew)]
            for depth in range(tries[0].num_levels):
                masks = [trie.child_mask(depth, torch.arange(trie.num_nodes[depth])) for trie in tries]
                assert torch.equal(*masks)


def machine_of(name):
    case = type(f"{name.title()}Machine", (CatalogMachine,), {"kind": name}).TestCase
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    case.settings = settings(
        max_examples=2, stateful_step_count=6, deadline=None, derandomize=True, suppress_health_check=checks
    )
    return case


TestLatte = machine_of("latte")
TestTwoHeads = machine_of("two heads")
TestRPG = machine_of("rpg")
TestACERec = machine_of("acerec")
TestVQRec = machine_of("vqrec")
TestSASRec = machine_of("sasrec")
TestTable = machine_of("table")
TestText = machine_of("text")
TestEnsemble = machine_of("ensemble")


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "run")


@pytest.fixture
def shop(folder):
    return Recommender.from_pretrained(folder, device="cpu")


def test_a_folder_serves_its_current_version_after_a_restart_and_an_earlier_one_where_asked(folder, shop):
    shop.catalog.add([{"item_id": "new", "title": "New", "codes": free_codes(shop)}])
    shop.catalog.remove(["i3", "i8"])

    again = Recommender.from_pretrained(folder, device="cpu")
    earlier = Recommender.from_pretrained(folder, device="cpu", catalog_version=2)

    assert again.catalog.versions() == shop.catalog.versions()
    assert again.recommend(["i3", "new"], top_k=30) == shop.recommend(["i3", "new"], top_k=30)
    assert again.titles(["new"]) == ["New"]
    assert {"new", "i3", "i8"} <= set(earlier.recommend([[]], top_k=30).item_ids[0])
    with pytest.raises(ValueError, match=r"rollback\(2\)"):
        earlier.catalog.remove(["i1"])


def test_a_removed_item_counts_in_histories_and_is_never_listed(shop):
    before = shop.score_items(["i3"])

    shop.catalog.remove(["i5"])

    assert "i5" not in shop.recommend(["i5"], top_k=29, exclude_seen=False).item_ids
    assert shop.recommend(["i5"], allow_items=["i5"]).item_ids == []
    assert shop.recommend(["i5"]).num_unknown == 0
    assert shop.score_items(["i3"])[0, 5] == -float("inf")
    kept = [row for row in range(29) if row != 5]
    torch.testing.assert_close(torch.tensor(shop.score_items(["i3"])[:, kept]), torch.tensor(before[:, kept]))


def test_loaders_that_know_nothing_of_versions_close_removed_items_and_say_what_they_leave_out(folder, shop, caplog):
    shop.catalog.add([{"item_id": "new", "codes": free_codes(shop)}])
    shop.catalog.remove(["i5"])

    model = AutoModel.from_pretrained(folder)
    with caplog.at_level("WARNING"):
        answer = pipeline("next-item-recommendation", model=str(folder))(["i1"], top_k=29)

    assert (~model.open_items).nonzero().tolist() == [[5]]
    assert {"i5", "new"}.isdisjoint(entry["item_id"] for entry in answer)
    assert "1 items" in caplog.text


def test_delta_is_what_a_follower_has_to_do(shop):
    shop.catalog.add([{"item_id": "a", "codes": free_codes(shop)}])
    shop.catalog.add([{"item_id": "b", "codes": free_codes(shop)}])
    shop.catalog.remove(["i1", "a"])

    delta = shop.catalog.delta(2)

    assert (delta["since"], delta["version"], delta["removed"]) == (2, 4, ["i1", "a"])
    assert delta["added"]["item_id"].to_pylist() == ["b"]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "empty"),
        ([{"title": "x"}], "item_id"),
        ([{"item_id": 3}], "strings"),
        ([{"item_id": "i3", "codes": [0, 0, 0]}], "'i3'"),
        ([{"item_id": "a", "codes": [0, 0, 0]}, {"item_id": "a", "codes": [0, 0, 1]}], "twice"),
        ([{"item_id": "<pad>", "codes": [0, 0, 0]}], "special token"),
        ([{"item_id": "a", "codes": [0, 0, 5]}], "from 0 to 4"),
        ([{"item_id": "a", "title": "A"}], "quantizer"),
    ],
)
def test_items_that_cannot_be_added_are_refused_and_nothing_changes(shop, items, message):
    with pytest.raises((ValueError, TypeError), match=message):
        shop.catalog.add(items)

    assert shop.catalog.version.number == 1


def test_ids_that_are_taken_are_refused_also_those_of_removed_items_unless_they_may_be_reused(shop):
    codes = shop.model.item_codes[4].tolist()
    with pytest.raises(ValueError, match="semantic ID of another item"):
        shop.catalog.add([{"item_id": "a", "codes": codes}])
    shop.catalog.remove(["i4"])
    with pytest.raises(ValueError, match="semantic ID of another item"):
        shop.catalog.add([{"item_id": "a", "codes": codes}])

    shop.catalog.add([{"item_id": "a", "codes": codes}], reuse_ids=True)

    assert "a" in shop.recommend([[]], top_k=29).item_ids[0]


def test_models_that_know_items_by_learned_rows_refuse_new_ones_before_they_have_learned_from_texts():
    shop = shop_of("sasrec")

    with pytest.raises(ValueError, match="learned of each"):
        shop.catalog.add([{"item_id": "a", "title": "A"}])
    with pytest.raises(ValueError, match="11"):
        shop.catalog.learn(TEXTS[:9])

    assert shop.catalog.remove(["i3"]).num_items == 10
    with pytest.raises(ValueError, match="No item would be left"):
        shop.catalog.remove([item_id for item_id in shop.item_ids if item_id != "i3"])
    with pytest.raises(ValueError, match="'i3', 'x'"):
        shop.catalog.remove(["i3", "x"])
    with pytest.raises(ValueError, match="versions 1 to 2"):
        shop.catalog.rollback(3)


def test_a_changed_catalog_keeps_the_vectors_of_its_items_ready_for_the_first_request():
    shop = shop_of("two heads")
    shop.recommend(["i1"])
    before = shop.model
    assert before.keeps_item_vectors

    shop.catalog.remove(["i3"])
    assert shop.model.keeps_item_vectors
    with torch.no_grad():
        assert shop.model.all_item_vectors() is before.all_item_vectors()

    add_one(shop, "new")
    assert shop.model.keeps_item_vectors
    with torch.no_grad():
        assert torch.equal(shop.model.all_item_vectors(), shop.model.item_vectors())


def test_rows_that_follow_from_texts_are_found_again_for_the_text_of_a_known_item():
    shop = shop_of("text")
    shop.catalog.learn(TEXTS)

    shop.catalog.add([{"item_id": "like 4"}], vectors=TEXTS[4:5])

    known, new = shop.model.item_vectors[[4, 11]]
    torch.testing.assert_close(new, known, atol=0.01, rtol=0.01)
    with pytest.raises(ValueError, match="text scorer"):
        shop_of("text").catalog.learn(TEXTS[::-1].copy())


def test_a_new_item_stands_where_rows_and_texts_together_place_items_like_it():
    model = make_sasrec(num_items=11, text_dim=8)
    model.set_text_vectors(torch.from_numpy(TEXTS))
    model.token_embeddings.weight.data[model.config.first_item_token :] = 0
    shop = Recommender(model, shop_of("sasrec").items)
    shop.catalog.learn(TEXTS)

    shop.catalog.add([{"item_id": "like 4"}], vectors=TEXTS[4:5])

    known, new = shop.item_vectors()[[4, 11]]
    assert np.corrcoef(known, new)[0, 1] > 0.5
    lists = shop.recommend([["i2", "like 4"], []], top_k=12)
    assert lists.item_ids == rebuilt(shop).recommend([["i2", "like 4"], []], top_k=12).item_ids


def test_what_was_learned_is_kept_in_the_folder_and_new_items_too(tmp_path):
    shop_of("ensemble").save_pretrained(tmp_path / "run")
    shop = Recommender.from_pretrained(tmp_path / "run", device="cpu")
    shop.catalog.learn(TEXTS)
    again = Recommender.from_pretrained(tmp_path / "run", device="cpu")

    again.catalog.add([{"item_id": "new", "codes": free_codes(again)}], vectors=TEXTS[2:3] + 0.1)
    again.catalog.remove(["i3"])

    loaded = Recommender.from_pretrained(tmp_path / "run", device="cpu")
    folded = Recommender.from_pretrained(loaded.save_pretrained(tmp_path / "folded"), device="cpu")
    lists = again.recommend([["i1", "new"], []], top_k=11)
    assert {*lists.item_ids[1]} == {*again.item_ids} - {"i3"}
    assert loaded.recommend([["i1", "new"], []], top_k=11) == lists
    assert folded.recommend([["i1", "new"], []], top_k=11).item_ids == lists.item_ids


def test_an_item_without_interactions_is_the_last_of_a_table_and_a_warning_says_so(caplog):
    shop = shop_of("table")

    with caplog.at_level("WARNING"):
        shop.catalog.add([{"item_id": "new"}])

    assert "listed last" in caplog.text
    assert shop.recommend([["i1"]], top_k=12, exclude_seen=False).scores[0][-1] < 0


def test_members_with_different_ids_refuse_new_items():
    members = [model_of("two heads"), model_of("latte")]
    shop = Recommender(EnsembleForItemGeneration.of(members), shop_of("latte").items)

    with pytest.raises(ValueError, match="different semantic IDs"):
        shop.catalog.add([{"item_id": "a"}])


@pytest.mark.parametrize("kind", ["rpg", "acerec"])
def test_the_graph_of_a_grown_catalog_is_that_of_one_built_anew(kind):
    shop = shop_of(kind)
    graph = build_item_graph(shop.model, num_neighbors=4)
    shop.model.set_item_graph(graph.neighbors, graph.fingerprint)
    for number in range(3):
        add_one(shop, f"new {number}")

    expected = build_item_graph(shop.model, num_neighbors=4)

    assert torch.equal(shop.model.item_graph, expected.neighbors)
    late = shop_of(kind)
    for number in range(3):
        add_one(late, f"new {number}")
    late.model.set_item_graph(graph.neighbors, graph.fingerprint)  # as a folder that was loaded holds it
    assert torch.equal(late.model.item_graph, expected.neighbors)
    assert "new 1" in late.recommend([["i1"]], decoding="graph", num_beams=14, top_k=14).item_ids[0]


def test_new_items_have_the_last_places_of_a_list(shop):
    for number in range(3):
        add_one(shop, f"new {number}")
    rule = {"exclude_seen": False, "new_item_margin": 0.0}
    together = shop.recommend([["i1"], []], top_k=32, num_new_items=0, **rule).item_ids
    rule["new_item_margin"] = 1e6

    default = shop.recommend([["i1"], []], top_k=15, **rule)
    three = shop.recommend([["i1"], []], top_k=7, num_new_items=5, **rule)

    for ranked, ten, seven in zip(together, default.item_ids, three.item_ids, strict=True):
        old = [item_id for item_id in ranked if item_id[0] == "i"]
        new = [item_id for item_id in ranked if item_id[0] == "n"]
        assert ten == old[:13] + new[:2]
        assert seven == old[:4] + new
    (alone,) = shop.recommend([["i1"]], allow_items=["new 1", "i2", "new 0"], top_k=10, **rule).item_ids
    assert alone[0] == "i2"
    assert {*alone[1:]} == {"new 0", "new 1"}
    paths = shop.model.recommend(torch.tensor([[40]]), top_k=10, return_paths=True)
    assert {path.item_token for path in paths.paths[0]} == set(paths.item_tokens[0].tolist())
    with pytest.raises(ValueError, match="num_new_items"):
        shop.recommend(["i1"], num_new_items=2, num_groups=2)


def test_two_processes_that_change_one_folder_do_not_lose_each_others_changes(folder, shop):
    other = Recommender.from_pretrained(folder, device="cpu")
    other.catalog.remove(["i2"])

    with pytest.raises(ValueError, match="refresh"):
        shop.catalog.remove(["i3"])
    shop.catalog.refresh()
    shop.catalog.remove(["i3"])

    assert other.catalog.refresh() == shop.catalog.version
    assert other.recommend(["i1"], top_k=29) == shop.recommend(["i1"], top_k=29)


def test_requests_end_on_the_version_they_began_with(shop):
    shop.catalog.folder = None
    valid, seen, stop = [set(shop.item_ids)], [], threading.Event()

    def ask():
        while not stop.is_set():
            seen.append(set(shop.recommend([["i1"]], top_k=40, exclude_seen=False).item_ids[0]))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(20):
        shop.catalog.remove([f"i{number}"])
        valid.append(valid[-1] - {f"i{number}"})
    while len(seen) < 3:
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()

    assert all(items in valid for items in seen)


def test_a_killed_change_leaves_a_whole_version(folder, shop):
    for delay in (0.0, 0.002, 0.005, 0.01, 0.02):
        process = os.fork()
        if not process:
            while True:
                shop.catalog.add([{"item_id": f"new {len(shop.item_ids)}", "codes": free_codes(shop)}])
        time.sleep(delay)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)

        again = Recommender.from_pretrained(folder, device="cpu")
        assert again.catalog.version.number == current_number(folder) == len(again.item_ids) - 28
        shop.catalog.refresh()
        assert shop.catalog.version.fingerprint == again.catalog.version.fingerprint


@pytest.mark.parametrize("name", ["versions.json", "rows-000002.parquet"])
def test_damaged_files_of_versions_are_refused(folder, shop, name):
    shop.catalog.add([{"item_id": "a", "codes": free_codes(shop)}])
    path = folder / "catalog" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))

    with pytest.raises(ValueError, match=name):
        Recommender.from_pretrained(folder, device="cpu")


def test_saving_folds_the_changes_in(shop, tmp_path):
    shop.catalog.add([{"item_id": "a", "codes": free_codes(shop)}])
    shop.catalog.remove(["i5"])
    lists = shop.recommend([["i5", "a"], []], top_k=30)

    again = Recommender.from_pretrained(shop.save_pretrained(tmp_path / "folded"), device="cpu")

    assert again.catalog.version.number == shop.catalog.version.number == 1
    assert not (tmp_path / "folded" / "catalog").exists()
    assert again.recommend([["i5", "a"], []], top_k=30) == lists
    assert (~AutoModel.from_pretrained(tmp_path / "folded").open_items).nonzero().tolist() == [[5]]
    again.catalog.add([{"item_id": "i5"}])
    assert Recommender.from_pretrained(tmp_path / "folded", device="cpu").catalog.version.num_items == 30


def test_another_save_into_the_folder_forgets_the_versions_of_the_weights_before(folder, shop):
    shop.catalog.remove(["i5"])
    model = model_of("latte")
    items = pa.table({"item_id": [f"j{row}" for row in range(11)]})

    Recommender(model, items).save_pretrained(folder)

    assert Recommender.from_pretrained(folder, device="cpu").catalog.version.num_items == 11
