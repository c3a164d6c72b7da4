"""Exported graphs rank as the recommender does."""

import importlib
import random
import re
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch

from hf_genrec import (
    GRU4RecConfig,
    GRU4RecForItemGeneration,
    HSTUConfig,
    HSTUForItemGeneration,
    Recommender,
    SASRecConfig,
    SASRecForItemGeneration,
)
from hf_genrec.serving.export.code_search import CodeSearch
from hf_genrec.serving.export.onnx_graph import export_onnx, ranking_graph, search_settings
from hf_genrec.serving.export.onnx_recommender import OnnxRecommender
from hf_genrec.serving.export.onnx_steps import HistoryGraph, StepGraph, trie_arrays
from invariants.model import make_model, tiny_config
from saved_folders import ITEM_IDS, make_folder, model_of


DENSE = {"history_attention": "causal", "history_unit": "item", "normalization": "catalog", "dense_head": True}


def recommender_of(architecture, folder):
    if architecture == "dense head":
        model = make_model(tiny_config(num_latent_tokens=0, **DENSE))
        return Recommender(model, pa.table({"item_id": ITEM_IDS}), decoding="dense")
    if architecture in ROWS:
        model_class, config = ROWS[architecture]
        return Recommender(make_model(config, model_class=model_class), pa.table({"item_id": ITEM_IDS}))
    return Recommender.from_pretrained(make_folder(folder, architecture), device="cpu")


ROWS = {
    "texts": (SASRecForItemGeneration, SASRecConfig(num_items=29, d_model=16, text_dim=7)),
    "hstu": (HSTUForItemGeneration, HSTUConfig(num_items=29, d_model=16, num_heads=2)),
    "gru4rec": (GRU4RecForItemGeneration, GRU4RecConfig(num_items=29, d_model=16)),
}
ARCHITECTURES = ["sasrec", "rpg", "acerec", "dense head", *ROWS]
EXPORTED = [ARCHITECTURES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES[1:])]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_network_that_is_exported_ranks_as_the_model_does(architecture, tmp_path):
    recommender = recommender_of(architecture, tmp_path / "run")
    graph, width = ranking_graph(recommender, top_k=12), recommender.model.config.max_history_length
    histories = [history[-width:] for history in histories_of(recommender)]
    rows = torch.tensor([[int(item[1:]) for item in h] + [-1] * (width - len(h)) for h in histories])

    items, scores = graph(rows, rows)

    found = recommender.recommend(histories, top_k=12, exclude_seen=True)
    for row, row_scores, wanted, wanted_scores in zip(
        items, scores.detach(), found.item_ids, found.scores, strict=True
    ):
        assert [f"i{item}" for item in row[row_scores.isfinite()].tolist()] == wanted
        np.testing.assert_allclose(row_scores[: len(wanted)], wanted_scores, atol=2e-5)


@pytest.fixture(scope="module", params=EXPORTED)
def both(request, tmp_path_factory):
    """A recommender and its export."""
    folder = tmp_path_factory.mktemp("onnx")
    recommender = recommender_of(request.param, folder / "run")
    exported = export_onnx(recommender, folder / "onnx", top_k=12, int8=request.param == "sasrec")
    return recommender, OnnxRecommender(exported, threads=1), exported


def histories_of(recommender, count=40):
    draw = random.Random(0)
    longest = recommender.model.config.max_history_length
    return [draw.sample(ITEM_IDS, draw.randrange(min(29, longest + 3))) for _ in range(count)]


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_lists_and_scores_are_those_of_the_recommender(both, exclude_seen):
    recommender, exported, _ = both
    histories = histories_of(recommender)

    found = recommender.recommend(histories, top_k=12, exclude_seen=exclude_seen, exclude_items=["i4", "x"])
    item_ids, scores = exported.recommend(histories, top_k=12, exclude_seen=exclude_seen, exclude_items=["i4", "x"])

    assert item_ids == found.item_ids
    for ours, theirs in zip(scores, found.scores, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_one_user_and_lists_of_other_lengths(both):
    recommender, exported, _ = both

    assert exported.recommend([["i3"]], top_k=5)[0] == recommender.recommend([["i3"]], top_k=5).item_ids
    assert exported.recommend([[]], top_k=1)[0] == recommender.recommend([[]], top_k=1).item_ids
    assert exported.recommend([]) == ([], [])
    with pytest.raises(ValueError, match=re.escape("`top_k` must be in [1, 12], as exported, got 13")):
        exported.recommend([["i3"]], top_k=13)


def test_graph_of_eight_bits_gives_whole_lists(both):
    recommender, exported, folder = both
    if not (folder / "model_int8.onnx").exists():
        pytest.skip("one architecture is enough")

    item_ids, scores = OnnxRecommender(folder, int8=True, threads=1).recommend([["i3", "i5"]], top_k=12)

    assert len(set(item_ids[0])) == 12
    np.testing.assert_allclose(scores, exported.recommend([["i3", "i5"]], top_k=12)[1], atol=0.2)


class InTorch:
    """A graph that is run as onnxruntime runs it."""

    def __init__(self, graph):
        self.graph = graph.eval()

    def run(self, _, inputs):
        with torch.no_grad():
            found = self.graph(
                **{name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
            )
        return [value.numpy() for value in found]


def search_of(recommender, folder):
    graphs = {"encoder": HistoryGraph(recommender.model), "decoder": StepGraph(recommender.model)}
    np.savez(folder / "trie.npz", **trie_arrays(recommender.model))
    return CodeSearch(folder, search_settings(recommender), lambda name: InTorch(graphs[name]))


SEARCHED = {
    "TIGER": ({"num_latent_tokens": 0}, {}),
    "Latte": ({"num_latent_tokens": 3}, {"latent_aggregation": "sum"}),
    "causal over codes": ({"num_latent_tokens": 0, "history_attention": "causal", "marked_tokens": "all"}, {}),
    "causal over items": ({"num_latent_tokens": 2} | DENSE | {"dense_head": False}, {"num_beams": 3}),
    "two heads": ({"num_latent_tokens": 0} | DENSE, {"dense_weight": 0.7, "num_beams": 4}),
    "two heads and latents": ({"num_latent_tokens": 3} | DENSE, {"dense_weight": 1.5, "latent_aggregation": "sum"}),
}


@pytest.mark.parametrize(("kind", "is_shared"), [(kind, "Latte" in kind or "latents" in kind) for kind in SEARCHED])
def test_search_between_two_graphs_finds_what_the_recommender_finds(kind, is_shared, tmp_path):
    changes, options = SEARCHED[kind]
    model = make_model(tiny_config(**changes))
    if is_shared:
        codes = model.item_codes.clone()
        codes[[4, 9, 20]] = codes[2].clone()
        model.set_catalog(codes)
    recommender = Recommender(model, pa.table({"item_id": ITEM_IDS}), **options)
    recommender.catalog.remove(["i7", "i9"])
    histories = histories_of(recommender)
    width = recommender.model.config.max_history_length
    rows = [[int(item[1:]) for item in history] for history in histories]
    read, closed = (np.full((len(rows), size), -1) for size in (width, 30))
    for place, row in enumerate(rows):
        row = row[-width:]
        read[place, : len(row)] = row
        closed[place, : len(row)] = row

    items, scores = search_of(recommender, tmp_path).find(read, closed, top_k=25)

    found = recommender.recommend([history[-width:] for history in histories], top_k=25, exclude_seen=True)
    for row, row_scores, wanted, wanted_scores in zip(items, scores, found.item_ids, found.scores, strict=True):
        assert [f"i{item}" for item in row if item >= 0] == wanted
        np.testing.assert_allclose(row_scores[: len(wanted)], wanted_scores, atol=2e-5)


@pytest.mark.slow
def test_two_graphs_and_the_dense_head_in_onnxruntime(tmp_path):
    model = make_model(tiny_config(num_latent_tokens=3, **DENSE))
    recommender = Recommender(model, pa.table({"item_id": ITEM_IDS}), dense_weight=0.5, num_beams=7)
    folder = export_onnx(recommender, tmp_path / "onnx", top_k=12, int8=True)
    histories = histories_of(recommender)

    wanted = recommender.recommend(histories, top_k=12, exclude_items=["i4"])
    item_ids, scores = OnnxRecommender(folder, threads=1).recommend(histories, top_k=12, exclude_items=["i4"])

    assert item_ids == wanted.item_ids
    np.testing.assert_allclose(sum(scores, []), sum(wanted.scores, []), atol=2e-5)
    dense = OnnxRecommender(folder, threads=1, decoding="dense").recommend(histories, top_k=12)[0]
    assert dense == recommender.recommend(histories, top_k=12, decoding="dense", dense_weight=0.0).item_ids
    assert len(set(OnnxRecommender(folder, int8=True, threads=1).recommend([["i3"]], top_k=12)[0][0])) == 12
    with pytest.raises(ValueError, match="`decoding` must be None, or 'dense'"):
        OnnxRecommender(folder, decoding="exact")


def test_what_has_no_graph_is_refused_by_name(tmp_path):
    table = Recommender(model_of("item_to_item"), pa.table({"item_id": ITEM_IDS}))
    diverse = Recommender(model_of("latte"), pa.table({"item_id": ITEM_IDS}), diversity=0.5)

    with pytest.raises(ValueError, match="no ONNX graph for ItemToItemForItemGeneration"):
        export_onnx(table, tmp_path)
    with pytest.raises(ValueError, match="does not know `diversity`, which this recommender is set to"):
        export_onnx(diverse, tmp_path)


def test_missing_extra_is_named_with_its_command(monkeypatch, tmp_path):
    recommender = Recommender(model_of("sasrec"), pa.table({"item_id": ITEM_IDS}))
    monkeypatch.setitem(sys.modules, "onnxscript", None)

    with pytest.raises(ImportError, match=re.escape('pip install "hf-genrec[onnx]"')):
        importlib.import_module("hf_genrec.serving.export.onnx_graph").export_onnx(recommender, tmp_path)
