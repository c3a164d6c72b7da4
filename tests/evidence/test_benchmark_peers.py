"""The comparison with other libraries without them: our side of it, the search that is common to all, the page."""

import importlib.util
import itertools

import pytest
import torch


@pytest.fixture(scope="module")
def tries(load_script):
    return load_script("peer_tries")


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("benchmark_peers")


@pytest.mark.parametrize("name", ["hf_genrec", "hf_genrec, lists", "rectokens"])
def test_a_search_that_keeps_all_prefixes_finds_the_best_ids_in_order(tries, name):
    if name == "rectokens" and importlib.util.find_spec("rectokens") is None:
        pytest.skip("rectokens is not installed")
    rows = list(itertools.product(range(7), range(2), range(2)))  # 7 codes, 14 pairs, 28 ids: few children, many codes
    codes = torch.tensor(rows)[torch.randperm(28)]
    scores = torch.randn(3, 2, 7).log_softmax(-1)
    scores[1:, :, 2:] = 9.0  # better than any legal code

    found = tries.search(tries.TRIES[name](codes, 7), scores, 7)

    for user in range(2):
        first = sorted(range(7), key=lambda code: -scores[0, user, code])
        pairs = sorted(itertools.product(first, range(2)), key=lambda pair: -sum(scores[[0, 1], user, pair]))[:7]
        ids = itertools.product(pairs, range(2))
        best = sorted(ids, key=lambda id_: -(sum(scores[[0, 1], user, id_[0]]) + scores[2, user, id_[1]]))[:7]
        assert found[user].tolist() == [[*pair, code] for pair, code in best]


def test_rows_are_sorted_by_their_codes(tries):
    codes = torch.tensor([[2, 0, 1], [0, 4, 3], [2, 0, 0], [0, 4, 4]])

    assert tries.in_order(codes, 5).tolist() == [[0, 4, 3], [0, 4, 4], [2, 0, 0], [2, 0, 1]]


def test_a_trie_is_built_searched_and_weighed(script):
    options = script.parse_arguments(["--parts", "tries", "--searches", "2"])

    ours, lists = (script.measured_trie(name, 20_000, options) for name in ("hf_genrec", "hf_genrec, lists"))

    assert len(ours["found"]) == 16 * 50 * 4
    assert ours["found"] == lists["found"]
    assert ours["held_mb"] == lists["held_mb"] > 20_000 * 8 / 2**20
    assert ours["search_ms"] > 0


def test_all_tensors_of_an_object_are_found_however_deep(script):
    class Trie:
        def __init__(self):
            self.tables, self.pair, self.size = [torch.zeros(3), [torch.zeros(4)]], (torch.zeros(5), None), 7

    assert [len(tensor) for tensor in script.tensors_of(Trie())] == [3, 4, 5]


def test_our_side_counts_the_targets_of_each_step_and_lists_items(script, make_prepared):
    prepared = make_prepared({f"u{number}": [*"abcdefghijk"][number % 3 :] for number in range(9)})
    codes = torch.tensor(list(itertools.product(range(4), range(3))))[:11].numpy()
    small = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    model = script.our_tiger(prepared, codes, 4, history_attention="bidirectional", **small)
    ours = script.Ours(prepared, model, 5)

    steps = ours.train(3)
    lists = ours.recommend([[0, 10], [2]], num_beams=11)

    assert [step.targets for step in steps] == [5, 5, 5]
    assert all(step.seconds > 0 for step in steps)
    assert [len(row) for row in lists] == [10, 10]
    assert set(lists[0]) < set(range(11))


def test_parts_ask_for_the_files_they_need(script, capsys):
    with pytest.raises(SystemExit):
        script.parse_arguments(["--parts", "tries", "rpg", "--prepared", "folder"])
    assert "--parallel-ids is needed" in capsys.readouterr().err


def test_the_page_shows_ratios_to_the_peer_and_a_dash_for_what_it_cannot(load_script):
    part = {
        "num_items": 7,
        "load_average": 1.26,
        "ids": {"quantizer": "residual-kmeans", "levels": 3, "codebook_size": 256},
        "settings": {"batch_size": 256, "together": 64},
        "training": [
            {"name": "cornac", "targets_per_step": 256, "targets_per_cpu_second": 20.0},
            {"name": "hf_genrec", "targets_per_step": 255, "targets_per_cpu_second": 90.0},
        ],
        "lists": [
            {"name": "cornac", "beams": 20, "users_per_second": 4.0},
            {"name": "hf_genrec", "beams": 20, "users_per_second": 10.0, "together": 50.0},
        ],
    }
    machine = {"device": "x86_64", "threads": 1, "torch": "2.13.0"}
    versions = {"cornac": "3.0.1", "rectokens": "0.2.2", "transformers": "5.23.0"}

    page = "\n\n".join(
        load_script("peer_results").peer_blocks({"tiger": part, "machine": machine, "versions": versions})
    )

    assert "load average 1.3 before it. Tuples are the same, 3 codes of 256 by residual-kmeans and a number" in page
    assert "| hf_genrec | 255 | 90.0 | 4.5 |" in page
    assert "| cornac | 4.0 | – |" in page
    assert "| hf_genrec | 10.0 (2.5×) | 50.0 (12.5×) |" in page
    assert load_script("peer_results").peer_blocks(None) == []
