"""What the Space does without a browser: its model, its history, its HTML and its picture."""

import dataclasses
import html
import json
import re
import sys
from types import SimpleNamespace
from urllib.parse import parse_qs

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hf_genrec import Recommender, SemanticIds, save_recommender
from hf_genrec.evaluation.baselines import NEIGHBORS_NAME, ItemKNN, save_neighbors
from hf_genrec.evaluation.baselines.item_knn import NUM_PUBLISHED
from hf_genrec.modeling.modeling_ensemble import EnsembleForItemGeneration
from invariants.model import NUM_ITEMS, make_item_to_item, make_model, make_sasrec, random_codes, tiny_config
from saved_folders import make_folder
from served import served as run_server


HOSTILE = '<img src=x onerror="window.hacked=1">${window.hacked=2}{{this}}'
ITEM_IDS = [f"i{number}" for number in range(NUM_ITEMS)]
TITLES = [f"Crème number {number}" for number in range(NUM_ITEMS - 2)] + [HOSTILE, "the second crème \u202e turned"]


@pytest.fixture(scope="module")
def space(repository):
    """The Space's modules, found as the Space finds them."""
    sys.path.insert(0, str(repository / "spaces_demo"))
    import neighbors
    import page_parts
    import remote_model
    import served_model
    import tree_view
    import visit

    yield SimpleNamespace(
        model=served_model, remote=remote_model, parts=page_parts, tree=tree_view, visit=visit, neighbors=neighbors
    )
    sys.path.remove(str(repository / "spaces_demo"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    items = pa.table({"item_id": ITEM_IDS, "title": TITLES})
    semantic_ids = SemanticIds(ITEM_IDS, random_codes().numpy(), 5, "keep")
    model = make_model(tiny_config(num_latent_tokens=2))
    return save_recommender(tmp_path_factory.mktemp("space") / "run", model, semantic_ids, items)


@pytest.fixture(scope="module")
def served(space, folder):
    return space.model.load_model(folder)


@pytest.fixture(scope="module")
def served_sasrec(space, tmp_path_factory):
    model = make_sasrec(num_items=NUM_ITEMS)
    target = tmp_path_factory.mktemp("sasrec") / "run"
    return space.model.load_model(save_recommender(target, model, None, pa.table({"item_id": ITEM_IDS})))


def test_list_is_that_of_the_recommender(space, served, folder):
    wanted = Recommender.from_pretrained(folder, device="cpu").recommend(
        [["i3", "i7"]], top_k=5, num_beams=20, exclude_seen=False
    )

    answer = served.recommend([3, 7], space.model.Settings(top_k=5, num_beams=20))

    assert [served.item_ids[item] for item in answer.items] == wanted.item_ids[0]
    assert answer.scores == pytest.approx(wanted.scores[0], abs=1e-5)


def test_history_can_be_empty_and_can_be_left_out(space, served):
    everything = served.recommend([], space.model.Settings(top_k=50))
    without = served.recommend([3, 7], space.model.Settings(top_k=50, exclude_seen=True))

    assert sorted(everything.items) == list(range(NUM_ITEMS))
    assert everything.reasons == [[]] * NUM_ITEMS
    assert sorted(without.items) == [item for item in range(NUM_ITEMS) if item not in (3, 7)]


@pytest.mark.parametrize("wild", [10**9, -5, None, float("nan"), float("inf"), "many"])
def test_numbers_from_a_browser_are_brought_into_their_bounds(space, wild):
    settings = space.model.Settings(top_k=wild, num_beams=wild, latent_aggregation=wild, diversity=wild)

    assert 1 <= settings.top_k <= 50
    assert 1 <= settings.num_beams <= 200
    assert 0 <= settings.diversity <= 1
    assert settings.latent_aggregation == "max"


def test_search_wants_all_words_and_neither_case_nor_accents(served):
    assert served.search("CREME 12") == [12]
    assert served.search("crème")[:2] == [0, 1]
    assert served.search("second creme") == [NUM_ITEMS - 1]
    assert served.search("i5")[0] == 5
    assert served.search("nothing like it") == served.search("  ") == []


def test_page_of_a_sum_without_vectors_of_items_has_examples_and_no_reasons(space, served_sum, monkeypatch):
    monkeypatch.setattr(served_sum.model, "item_embeddings", lambda: None)  # as earlier versions saved it
    monkeypatch.delitem(vars(served_sum), "can_compare", raising=False)

    assert not served_sum.can_compare
    assert len(served_sum.examples()) == 4
    assert served_sum.reasons([3], [5]) == [[]]
    del served_sum.can_compare


def test_reason_is_the_shared_prefix_and_the_latest_item_stands_first(space):
    codes = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 2]]
    model = make_model(tiny_config(num_items=5, num_levels=3, codebook_size=3))
    model.set_catalog(torch.tensor(codes))
    served = space.model.ServedModel("name", model, pa.table({"item_id": list("abcde")}))

    (reasons,) = served.reasons([0], [1, 2, 3, 4])

    assert [(reason.item, reason.num_leading, reason.num_shared) for reason in reasons] == [
        (4, 2, 2),
        (1, 2, 2),
        (2, 1, 2),
    ]


def test_model_without_codes_has_neither_beams_nor_a_tree(space, served_sasrec):
    answer = served_sasrec.recommend([3, 7], space.model.Settings(top_k=4, diversity=0.5))

    assert (served_sasrec.has_beams, served_sasrec.has_latents) == (False, False)
    assert space.parts.tree_html(served_sasrec, answer) == ""
    assert len(answer.items) == 4
    assert "closeness" in space.parts.list_html(served_sasrec, [3, 7], answer)
    assert all(-1 <= reason.cosine <= 1.001 for reasons in answer.reasons for reason in reasons)


@pytest.fixture(scope="module")
def served_sum(space, tmp_path_factory):
    model = EnsembleForItemGeneration.of([make_sasrec(num_items=NUM_ITEMS), make_item_to_item()], weights=[1.0, 0.5])
    target = tmp_path_factory.mktemp("sum") / "run"
    return space.model.load_model(save_recommender(target, model, None, pa.table({"item_id": ITEM_IDS})))


@pytest.mark.parametrize("kind", ["served", "served_sasrec", "served_sum"])
def test_examples_are_distinct_histories_of_the_catalog(request, kind):
    examples = request.getfixturevalue(kind).examples()

    assert len({history[0] for history in examples}) == 4
    assert [len(set(history)) for history in examples] == [3, 3, 3, 3]


@pytest.mark.parametrize(
    ("action", "item", "wanted"),
    [
        ("add", 9, (3, 7, 9)),
        ("add", 3, (7, 3)),
        ("remove", 3, (7,)),
        ("earlier", 7, (7, 3)),
        ("earlier", 3, (3, 7)),
        ("earlier", 9, (3, 7)),
        ("clear", None, ()),
        ("example", 1, (1, 2)),
        ("example", 2, (3, 7)),
        ("add", NUM_ITEMS, (3, 7)),
        ("add", -1, (3, 7)),
        ("add", True, (3, 7)),
        ("add", "9", (3, 7)),
        ("drop table", 9, (3, 7)),
        (None, None, (3, 7)),
    ],
)
def test_buttons_change_the_history_and_nonsense_does_not(space, served, action, item, wanted):
    history, _ = space.visit.changed(served, [[0], [1, 2]], (3, 7), action, item)

    assert history == wanted


def test_history_ends_at_fifty_items(space, served):
    full = tuple(range(100, 150))

    history, notice = space.visit.changed(served, [], full, "add", 3)

    assert history == full
    assert "50" in notice


def test_link_names_items_and_tells_which_ones_are_unknown(space, served):
    history, notice = space.visit.linked(served, "i3, <b>no</b>,i7,i3,,")

    assert history == (3, 7)
    assert "<b>no</b>" in notice
    assert "&lt;b&gt;no&lt;/b&gt;" in space.parts.history_html(served, history, notice=notice)


def test_copied_link_brings_the_history_back_whatever_the_ids(space):
    item_ids = ["a,b", "a%2Cb", 'ü <&"', "50%", " c"]
    model = make_model(tiny_config(num_items=5, num_levels=3, codebook_size=3))
    model.set_catalog(torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 2]]))
    served = space.model.ServedModel("name", model, pa.table({"item_id": item_ids}))

    page = space.parts.history_html(served, [3, 0, 2, 1, 4])

    link = html.unescape(page.partition('data-link="')[2].partition('"')[0])
    (ids,) = parse_qs(link.removeprefix("?"))["items"]
    assert space.visit.linked(served, ids) == ((3, 0, 2, 1, 4), "")


def test_page_says_whose_lists_it_shows(space, served, folder):
    on_hub = space.model.ServedModel("me/<x>", served.model, pa.table({"item_id": ITEM_IDS}), is_on_hub=True)

    assert served.name == "/".join(folder.parts[-2:])
    assert f"from the folder <b>{served.name}</b> ranks 29 items" in space.parts.head_html(served)
    assert 'href="https://huggingface.co/me/&lt;x&gt;"' in space.parts.head_html(on_hub)


def test_list_of_item_knn_says_what_both_lists_hold(space, served):
    answer = served.recommend([3, 7], space.model.Settings(top_k=3))
    strange = next(item for item in range(NUM_ITEMS) if item not in answer.items)
    with_neighbors = dataclasses.replace(answer, by_neighbors=[answer.items[2], strange])

    page = space.parts.neighbors_html(served, [3, 7], with_neighbors)

    assert space.parts.neighbors_html(served, [3, 7], answer) == ""  # a repository without neighbours
    assert "also the model's number 3" in page
    assert "1 of 2 are in both lists" in page


def test_jargon_is_explained_where_it_stands(space, served):
    page = space.parts.list_html(served, [3], served.recommend([3], space.model.Settings(top_k=2)))

    for word in ("log p", "codes", "latents"):
        assert f"<b>{word}</b> " in page
    assert re.search(r'<abbr title="[^"]+">best of latents</abbr>', page)


def test_title_is_shown_and_not_run(space, served):
    hostile = TITLES.index(HOSTILE)
    no_lists = np.zeros(NUM_ITEMS + 1, dtype=int), np.zeros(0, dtype=int), np.zeros(0)
    served.neighbors = space.neighbors.Neighbors(*no_lists, popularity=np.arange(NUM_ITEMS), decay=0.35)
    pages = space.visit.shown(served, (hostile, 3), 29, 200, "sum", False, 0.0)[1:]
    served.neighbors = None
    assert len(pages) == 4
    pages += (space.parts.found_html(served, HOSTILE, [hostile]), space.parts.examples_html(served, [[hostile]]))

    for page in pages:
        assert "&lt;img src=x" in page
        assert "<img" not in page
        assert "${" not in page
        assert "{{" not in page


def test_control_characters_are_not_shown(served):
    assert served.titles[-1] == "the second crème turned"


def path(codes, scores, item, latent=None):
    return SimpleNamespace(codes=codes, scores=scores, item_token=item, latent=latent)


def test_tree_grows_code_by_code_and_keeps_a_dropped_choice(space):
    paths = [path([0, 1], [-1.0, -2.0], 10), path([0, 2], [-1.0, -1.5], 11), path([3, 1], [-2.0, -4.0], 12)]
    pruned = [path([4], [-3.0], None), path([9, 9], [-9.0, -9.5], None)]

    root = space.tree.grown(paths, pruned)

    nodes = space.tree.walked(root)
    assert [node.label for node in nodes if node.depth == 1] == ["0", "3", "4"]
    assert [node.label for node in nodes if node.is_pruned] == ["4"]
    assert [node.item for node in nodes if node.item is not None] == [10, 11, 12]
    assert root.best == -1.5


def test_path_of_several_latents_is_drawn_once_and_says_which_found_it(space):
    paths = [path([0], [-0.5, -1.0], 10, latent=1), path([0], [-0.7, -2.0], 10, latent=0)]
    paths.append(path([3], [-0.7, -2.5], 11, latent=0))

    picture = space.tree.tree_svg(
        paths, [], ranks={10: 1, 11: 2}, titles={10: "a <b> title", 11: "b"}, num_levels=1, num_latents=3
    )

    assert picture.count("1. a &lt;b&gt; title") == 1
    assert "Found by 2 of 3 latents. latent 0: log-probability -2.00; latent 1: log-probability -1.00" in picture
    assert "Found by 1 of 3 latents" in picture
    assert (picture.count('class="agrees"'), picture.count('class="differs"')) == (3, 3)
    assert "with 2 paths" in picture


def test_branch_is_as_likely_as_its_best_latent_and_what_one_latent_keeps_is_not_dropped(space):
    paths = [path([0, 1], [-0.5, -1.0, -3.0], 10, latent=1), path([0, 2], [-0.7, -2.0, -2.5], 11, latent=0)]
    pruned = [path([0, 1], [-0.7, -2.0, -4.0], None, latent=0), path([], [-9.0], None, latent=2)]

    root = space.tree.grown(paths, pruned)

    assert root.children[0].score == -1.0
    assert [node.is_pruned for node in space.tree.walked(root)] == [False] * 6


def test_many_latents_are_counted(space):
    paths = [path([0], [-0.5, -1.0], 10, latent=latent) for latent in range(13)]

    picture = space.tree.tree_svg(paths, [], ranks={10: 1}, titles={10: "a"}, num_levels=1, num_latents=20)

    assert "13 of 20</text>" in picture
    assert "<rect" not in picture


def test_rows_of_the_tree_do_not_overlap(space):
    paths = [path([code // 4, code % 4], [-1.0, -1.0 - code], code) for code in range(11)]
    root = space.tree.grown(paths, [path([7], [-3.0], None)])

    space.tree.placed(root, 0.0)

    heights = sorted(node.y for node in space.tree.walked(root) if not node.children)
    assert min(b - a for a, b in zip(heights, heights[1:], strict=False)) >= space.tree.PRUNED_ROW


@pytest.mark.parametrize(
    ("score", "wanted"), [(0.0, "100 %"), (-3.0, "5.0 %"), (-7.0, "0.091 %"), (-12.0, "0.00061 %")]
)
def test_probability_has_two_digits_that_count(space, score, wanted):
    assert space.parts.percent(score) == wanted


def test_about_shows_the_metrics_beside_the_baselines_and_their_settings_are_the_defaults(space, folder, tmp_path):
    values = {"ndcg@10": 0.0378, "recall@10": 0.0724, "invalid_rate": 0.0, "intervals": {"ndcg@10": [0.0357, 0.0397]}}
    record = {
        "protocol": "custom", "split": "test", "num_users": 7, "num_items": 29, "exclude_seen": False, "model": values,
        "baselines": {"item_knn": values | {"ndcg@10": 0.0372}}, "run": {"num_beams": 30, "latent_aggregation": "sum"},
    }  # fmt: skip
    served = space.model.ServedModel("me/<x>", make_model(tiny_config()), pa.table({"item_id": ITEM_IDS}), record)

    page = space.parts.about_html(served)

    assert "me/&lt;x&gt;" in page
    assert page.index("0.0378") < page.index("[0.0357, 0.0397]") < page.index("item-kNN") < page.index("0.0372")
    defaults = served.defaults
    assert (defaults.num_beams, defaults.latent_aggregation, defaults.exclude_seen) == (30, "sum", True)


def test_table_of_other_weights_is_an_error(space, folder, tmp_path):
    items = pq.read_table(folder / "items.parquet")
    for path_ in folder.iterdir():
        (tmp_path / path_.name).symlink_to(path_)
    (tmp_path / "items.parquet").unlink()
    pq.write_table(items.take(list(range(NUM_ITEMS))[::-1]), tmp_path / "items.parquet")

    with pytest.raises(ValueError, match=r"items\.parquet"):
        space.model.load_model(tmp_path)


def test_recommender_is_named_by_argument_then_variable_then_card(space, tmp_path, monkeypatch):
    card = tmp_path / "README.md"
    card.write_text(f"---\nmodels:\n- {json.dumps('me/card')}\n---\n", encoding="utf-8")
    monkeypatch.setenv("HF_GENREC_REPO", "me/variable")

    assert space.model.repository(["me/argument"], readme=card) == "me/argument"
    assert space.model.repository([], readme=card) == "me/variable"
    monkeypatch.delenv("HF_GENREC_REPO")
    assert space.model.repository([], readme=card) == "me/card"
    with pytest.raises(ValueError, match="HF_GENREC_REPO"):
        space.model.repository([], readme=tmp_path / "none.md")


def test_space_needs_nothing_of_this_package_unless_it_shows_a_language_model(repository):
    files = sorted(set((repository / "spaces_demo").glob("*.py")) - {repository / "spaces_demo" / "language_model.py"})
    requirements = (repository / "spaces_demo" / "requirements.txt").read_text(encoding="utf-8")

    assert files
    assert not [file.name for file in files if "hf_genrec" in file.read_text(encoding="utf-8")]
    names = {line.split(">")[0].strip() for line in requirements.splitlines()}
    assert names == {"gradio", "huggingface_hub", "pyarrow", "torch", "transformers"}


def test_neighbors_give_the_lists_of_item_knn(space, make_prepared, tmp_path):
    random = np.random.default_rng(3)
    log = {f"u{user}": [f"i{item}" for item in random.choice(60, 9, replace=False)] for user in range(150)}
    prepared = make_prepared(log)
    item_ids = list(prepared.item_ids)
    knn = ItemKNN.fit(prepared, num_neighbors=NUM_PUBLISHED)
    neighbors = space.neighbors.read_neighbors(saved_neighbors(prepared, tmp_path), item_ids)

    for length in (0, 1, 4, 9):
        history = random.choice(len(item_ids), length, replace=False).tolist()
        for exclude_seen in (False, True):
            wanted = knn.recommend([[item_ids[item] for item in history]], top_k=60, exclude_seen=exclude_seen)
            found = neighbors.recommend(history, top_k=60, exclude_seen=exclude_seen)
            assert [item_ids[item] for item in found] == wanted.item_ids[0]


def test_neighbors_of_other_items_are_an_error(space, make_prepared, tmp_path):
    path = saved_neighbors(make_prepared({"u": ["a", "b", "c"], "v": ["b", "a", "c"]}), tmp_path)

    with pytest.raises(ValueError, match=r"item_neighbors\.parquet .3 items"):
        space.neighbors.read_neighbors(path, ["a", "c", "b"])


def saved_neighbors(prepared, folder):
    save_neighbors(prepared, folder)
    return folder / NEIGHBORS_NAME


@pytest.mark.parametrize("architecture", ["latte", "sasrec"])
def test_lists_of_a_server_are_those_of_the_model_in_this_process(space, tmp_path, architecture):
    folder = make_folder(tmp_path / "run", architecture)
    settings = space.model.Settings(top_k=5, num_beams=20, exclude_seen=True)
    here = space.model.load_model(folder)

    with run_server(Recommender.from_pretrained(folder, device="cpu")) as (address, _):
        remote = space.remote.RemoteModel(address, folder)
        answer = remote.recommend([3, 7], settings)
        httpx.post(f"{address}/catalog/remove", json={"item_ids": [remote.item_ids[answer.items[0]]]})
        after = remote.recommend([3, 7], settings)
        page = space.visit.shown(remote, [3, 7], 5, 20, "max", True, 0.0)
        examples = remote.examples()

    wanted = here.recommend([3, 7], settings)
    assert (answer.items, answer.reasons) == (wanted.items, wanted.reasons)
    assert answer.scores == pytest.approx(wanted.scores, abs=1e-5)
    assert after.items[:4] == answer.items[1:]
    assert page[-1] == ""  # no tree
    assert f"served by {address}, version 2" in space.parts.about_html(remote)
    assert len(examples) == 4
    with pytest.raises(space.remote.ServerError, match="does not answer"):
        remote.recommend([3], settings)


def test_items_that_only_the_server_has_are_counted(space, folder):
    class Later(space.remote.RemoteModel):
        def _ask(self, method, path, body=None):
            if path == "/info":
                return {"catalog_version": 2, "decoding": "beam"}
            return {"item_ids": ["i4", "new"], "scores": [-1.0, -2.0], "catalog_version": 2}

    remote = Later("http://127.0.0.1:1", folder)

    answer = remote.recommend([3], space.model.Settings(top_k=2))
    assert (answer.items, answer.scores, answer.num_unknown) == ([4], [-1.0], 1)
    assert "1 newer items that this page does not know" in space.parts.list_html(remote, [3], answer)
