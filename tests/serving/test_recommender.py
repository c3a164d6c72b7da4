"""Recommender: histories of item ids in, ranked item ids out; a folder that does not fit together is refused."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import pipeline

from hf_genrec import Recommender, SemanticIds, save_recommender
from hf_genrec.modeling.genrec_recommend_config import RecommendConfig
from hf_genrec.serving.folder import check_items
from hf_genrec.serving.recommendations import as_histories
from hf_genrec.tokenizers.vocabulary import build_tokenizer
from invariants.model import NUM_ITEMS, make_model, random_codes, tiny_config


ITEM_IDS = [f"item {number}" for number in range(NUM_ITEMS)]


@pytest.fixture(scope="module")
def saved_folder(tmp_path_factory):
    semantic_ids = SemanticIds(ITEM_IDS, random_codes().numpy(), 5, "keep")
    model = make_model(tiny_config(num_latent_tokens=2, max_history_length=4))
    items = pa.table({"item_id": ITEM_IDS, "title": [f"The {name}" for name in ITEM_IDS]})
    return save_recommender(tmp_path_factory.mktemp("saved") / "run", model, semantic_ids, items)


@pytest.fixture
def folder(saved_folder, tmp_path):
    return shutil.copytree(saved_folder, tmp_path / "run")


@pytest.fixture
def older_folder(folder):
    """As it was saved before there was a manifest: the files are compared with each other only."""
    (folder / "manifest.json").unlink()
    return folder


@pytest.fixture(scope="module")
def recommender(saved_folder):
    return Recommender.from_pretrained(saved_folder, device="cpu", num_beams=7)


def replace_items(folder, change):
    table = pq.read_table(folder / "items.parquet")
    pq.write_table(change(table), folder / "items.parquet")


@pytest.mark.parametrize("device", ["tpu", "cuda:99"])
def test_a_device_that_is_not_there_is_named(folder, device):
    with pytest.raises(ValueError, match=f"`device` '{device}' cannot be used here: "):
        Recommender.from_pretrained(folder, device=device)


def test_weights_rounded_to_bfloat16_give_nearly_the_same_scores_in_float32(folder, recommender):
    rounded = Recommender.from_pretrained(folder, device="cpu", dtype=torch.bfloat16, num_beams=7)

    found, expected = (some.recommend(["item 4", "item 2"], top_k=3) for some in (rounded, recommender))

    assert rounded.model.shared.weight.dtype == torch.bfloat16
    assert found.scores != expected.scores
    assert found.scores == pytest.approx(expected.scores, abs=0.1)


def test_lists_are_those_of_the_model(recommender):
    history = ["item 3", "item 28", "item 0"]

    result = recommender.recommend(history, top_k=6, exclude_seen=False)

    first = recommender.model.config.first_item_token
    output = recommender.model.recommend(torch.tensor([[first + 3, first + 28, first]]), top_k=6, num_beams=7)
    assert result.item_ids == [ITEM_IDS[token - first] for token in output.item_tokens[0].tolist()]
    assert list(result.scores) == pytest.approx(output.scores[0].tolist())
    assert result.num_unknown == 0


def test_batch_keeps_its_order_and_equals_its_users_one_by_one(folder):
    histories = [["item 5"] * 9, [], ["item 1", "item 2"], ["item 7"], ["item 2", "item 1"]]
    recommender = Recommender.from_pretrained(folder, device="cpu", batch_size=2)

    together = recommender.recommend(histories, top_k=5)

    for user, history in enumerate(histories):
        alone = recommender.recommend([history], top_k=5)
        assert alone.item_ids[0] == together.item_ids[user]
        assert alone.scores[0] == pytest.approx(together.scores[user], abs=1e-5)


def test_only_the_last_items_of_a_long_history_are_read(recommender):
    recent = ["item 4", "item 5", "item 6", "item 7"]

    scores = [
        recommender.recommend(rows, exclude_seen=False).scores for rows in (["item 1", "item 2", *recent], recent)
    ]

    assert scores[0] == scores[1]


def test_seen_items_are_left_out_even_those_too_old_to_be_read(recommender):
    everything = list(recommender.recommend(["item 9"], top_k=NUM_ITEMS, exclude_seen=False).item_ids)
    history = [*everything[:5], "item 1", "item 2", "item 3", "item 4"]

    unseen = recommender.recommend(history, top_k=NUM_ITEMS)

    assert sorted(unseen.item_ids) == sorted(set(ITEM_IDS) - set(history))
    assert len(unseen.scores) == len(unseen.item_ids)


def test_config_of_the_folder_decides_on_seen_items_unless_a_call_says_otherwise(folder):
    settings = folder / "recommend_config.json"
    assert json.loads(settings.read_text())["exclude_seen"] is True
    RecommendConfig.from_pretrained(folder).updated(exclude_seen=False).save(folder)

    recommender = Recommender.from_pretrained(folder, device="cpu")
    recommend = pipeline("next-item-recommendation", model=str(folder), trust_remote_code=True)

    history = ITEM_IDS[:4]
    for options, is_listed in (({}, True), ({"exclude_seen": True}, False)):
        found = recommender.recommend(history, top_k=NUM_ITEMS, **options).item_ids
        assert [entry["item_id"] for entry in recommend(history, top_k=NUM_ITEMS, **options)] == list(found)
        assert set(history).issubset(found) is is_listed


def test_users_with_different_numbers_of_seen_items_share_a_batch(recommender):
    histories = [ITEM_IDS[:27], ["item 3"], []]

    result = recommender.recommend(histories, top_k=4, exclude_seen=True)

    assert sorted(result.item_ids[0]) == ["item 27", "item 28"]
    assert [len(row) for row in result.item_ids] == [2, 4, 4]
    assert "item 3" not in result.item_ids[1]


def test_user_who_has_seen_everything_gets_an_empty_list(recommender):
    result = recommender.recommend([ITEM_IDS, ["item 1"]], top_k=3, exclude_seen=True)

    assert result.item_ids[0] == result.scores[0] == []
    assert len(result.item_ids[1]) == 3


def test_rules_for_all_users_and_for_each_are_item_ids(recommender):
    everyone = recommender.recommend([["item 1"], ["item 2"]], top_k=3, allow_items=["item 4", "item 9", "item 6"])
    each = recommender.recommend(
        [["item 1"], ["item 2"]], top_k=3, allow_items=[["item 4"], []], exclude_items=["item 9"]
    )

    assert [sorted(row) for row in everyone.item_ids] == [["item 4", "item 6", "item 9"]] * 2
    assert each.item_ids == [["item 4"], []]
    assert each.scores[0] == pytest.approx([everyone.scores[0][everyone.item_ids[0].index("item 4")]], abs=1e-5)


def test_rules_of_each_user_stay_with_the_user_when_a_batch_is_split(folder):
    recommender = Recommender.from_pretrained(folder, device="cpu", batch_size=2)
    histories = [["item 1"] * 4, [], ["item 2"]]

    result = recommender.recommend(histories, top_k=9, allow_items=[["item 5"], ["item 6"], ["item 7", "item 8"]])

    assert [sorted(row) for row in result.item_ids] == [["item 5"], ["item 6"], ["item 7", "item 8"]]


def test_seen_and_excluded_items_are_both_left_out(recommender):
    for rule in (ITEM_IDS[:20], [ITEM_IDS[:20], ITEM_IDS[:20]]):
        histories = [["item 20", "item 3"], ["item 25"]]

        result = recommender.recommend(histories, top_k=NUM_ITEMS, exclude_seen=True, exclude_items=rule)

        assert [sorted(row) for row in result.item_ids] == [
            sorted(set(ITEM_IDS[20:]) - {"item 20"}),
            sorted(set(ITEM_IDS[20:]) - {"item 25"}),
        ]


def test_unknown_ids_in_rules_are_counted_and_ignored(recommender, caplog):
    known = recommender.recommend(["item 1"], top_k=29, exclude_items=["item 5"])

    with caplog.at_level("WARNING"):
        found = recommender.recommend(["item 1"], top_k=29, exclude_items=[f"x{n}" for n in range(7)] + ["item 5"])
        allowed = recommender.recommend(["item 1"], allow_items=["soap", "item 2", "comb"])

    assert found == known
    assert allowed.item_ids == ["item 2"]
    assert (
        "7 ids in `exclude_items` are not in the catalog and are ignored: 'x0', 'x1', 'x2', 'x3', 'x4'" in caplog.text
    )
    assert "2 ids in `allow_items` are not in the catalog and are ignored: 'soap', 'comb'" in caplog.text


def test_rules_that_allow_unknown_ids_only_or_are_for_other_users_are_refused(recommender):
    with pytest.raises(ValueError, match="`allow_items` holds no id of the catalog: 'soap'. .* an empty list"):
        recommender.recommend(["item 1"], allow_items=["soap"])
    with pytest.raises(
        ValueError, match=r"`exclude_items` must be one list of ids or one per user \(1\), got 2 lists"
    ):
        recommender.recommend(["item 1"], exclude_items=[["item 1"], ["item 2"]])


def test_options_of_the_search_reach_the_model(recommender):
    first = recommender.model.config.first_item_token

    result = recommender.recommend(["item 1"], top_k=3, num_rescored=29, exclude_seen=False)

    exact = recommender.model.score_items(torch.tensor([[first + 1]])).topk(3)
    assert result.item_ids == [ITEM_IDS[index] for index in exact.indices[0].tolist()]


def test_unknown_ids_are_counted_reported_and_ignored(recommender, caplog):
    known = recommender.recommend(["item 3", "item 4"])

    with caplog.at_level("WARNING"):
        result = recommender.recommend([["soap", "item 3", "item 4", "Item 3"], ["item 1"]])

    assert result.num_unknown == 2
    assert "2 history items are not in the catalog and are ignored: 'soap', 'Item 3'" in caplog.text
    assert result.item_ids[0] == known.item_ids
    assert result.scores[0] == pytest.approx(list(known.scores), abs=1e-5)


def test_history_of_unknown_ids_only_is_an_empty_one(recommender):
    assert [recommender.recommend(["soap", "comb"]).item_ids] == recommender.recommend([[]]).item_ids


def test_longer_lists_than_the_catalog_are_the_whole_catalog(recommender):
    result = recommender.recommend(["item 1"], top_k=1000, exclude_seen=False)

    assert sorted(result.item_ids) == sorted(ITEM_IDS)


def test_beams_of_a_call_come_before_those_of_the_recommender(recommender):
    wide = recommender.recommend(["item 1"], num_beams=1000, top_k=3, exclude_seen=False)

    first = recommender.model.config.first_item_token
    exact = recommender.model.score_items(torch.tensor([[first + 1]])).topk(3)
    assert wide.item_ids == [ITEM_IDS[index] for index in exact.indices[0].tolist()]
    with pytest.raises(ValueError, match="`num_beams` must be at least 1, got 0"):
        recommender.recommend(["item 1"], num_beams=0)


@pytest.mark.parametrize(
    "histories", ["item 1", [1, 2], [["item 1"], "item 2"], ["item 2", ["item 1"]], [["item 1", 2]], [None]]
)
def test_anything_but_lists_of_strings_is_refused(recommender, histories):
    with pytest.raises(TypeError):
        recommender.recommend(histories)


def test_lists_of_no_items_are_refused(recommender):
    with pytest.raises(ValueError, match="`top_k` must be a whole number of at least 1, got 0"):
        recommender.recommend(["item 1"], top_k=0)


def test_tuples_are_histories_too():
    assert as_histories((("a", "b"), ("c",))) == [["a", "b"], ["c"]]
    assert as_histories(("a", "b")) == [["a", "b"]]


def test_model_is_served_in_evaluation_mode(folder):
    recommender = Recommender.from_pretrained(folder)

    assert not recommender.model.training


def test_renamed_items_are_refused(older_folder):
    replace_items(older_folder, lambda table: table.set_column(0, "item_id", pa.array(["soap", *ITEM_IDS[1:]])))

    with pytest.raises(ValueError, match=r"ids of the item table \(items.parquet, 29 items, .*config.json, 29 items"):
        Recommender.from_pretrained(older_folder)


def test_reordered_items_are_refused(older_folder):
    replace_items(older_folder, lambda table: table.take(list(range(NUM_ITEMS - 1, -1, -1))))

    with pytest.raises(ValueError, match="ids of the item table .* are not those the model was saved with"):
        Recommender.from_pretrained(older_folder)


def test_missing_items_are_refused(older_folder):
    replace_items(older_folder, lambda table: table.slice(0, 28))

    with pytest.raises(ValueError, match="items.parquet, 28 items"):
        Recommender.from_pretrained(older_folder)


@pytest.mark.parametrize(
    "codes", [random_codes(seed=3).tolist(), [[0, 1]] * NUM_ITEMS, [[0, 1, 2]] * 28 + [[1]], [[0, 1, 2]] * 28 + [None]]
)
def test_other_codes_in_the_table_are_refused(older_folder, codes):
    column = pa.array(codes, pa.list_(pa.int16()))
    replace_items(older_folder, lambda table: table.set_column(1, "codes", column))

    with pytest.raises(ValueError, match=r"codes of the item table \(items.parquet"):
        Recommender.from_pretrained(older_folder)


def test_table_without_ids_is_refused(older_folder):
    replace_items(older_folder, lambda table: table.drop_columns(["item_id"]))

    with pytest.raises(ValueError, match="needs a column `item_id`, found"):
        Recommender.from_pretrained(older_folder)
    with pytest.raises(ValueError, match="needs a column `item_id`, found"):
        Recommender(make_model(tiny_config()), pa.table({"title": ["x"] * NUM_ITEMS}))


def test_table_of_another_size_is_refused_for_a_model_without_a_record_of_its_items():
    with pytest.raises(ValueError, match="has 3 rows, the model's catalog 29 items"):
        check_items(make_model(tiny_config()), pa.table({"item_id": ["a", "b", "c"]}))


def test_file_that_is_no_table_is_refused(older_folder):
    (older_folder / "items.parquet").write_text("soap\n", encoding="utf-8")

    with pytest.raises(ValueError, match="is no readable Parquet file"):
        Recommender.from_pretrained(older_folder)


def test_missing_table_and_missing_folder_are_reported(folder, tmp_path):
    (folder / "items.parquet").unlink()

    with pytest.raises(OSError, match=r"items\.parquet"):
        Recommender.from_pretrained(folder)
    with pytest.raises(OSError, match="nowhere"):
        Recommender.from_pretrained(tmp_path / "nowhere")


def test_tokenizer_of_other_items_is_refused(older_folder):
    config = tiny_config(num_latent_tokens=2)
    build_tokenizer(["soap", *ITEM_IDS[1:]], config).save_pretrained(older_folder)

    with pytest.raises(ValueError, match=r"tokenizer \(tokenizer.json\) does not hold the items"):
        Recommender.from_pretrained(older_folder)


def test_tokenizer_with_items_behind_the_last_one_is_refused(older_folder):
    config = tiny_config(num_latent_tokens=2, num_items=NUM_ITEMS + 1)
    build_tokenizer([*ITEM_IDS, "soap"], config).save_pretrained(older_folder)

    with pytest.raises(ValueError, match=r"tokenizer \(tokenizer.json\) does not hold the items"):
        Recommender.from_pretrained(older_folder)


def test_weights_of_another_catalog_are_refused(older_folder):
    weights = load_file(older_folder / "model.safetensors")
    weights["item_codes"] = weights["item_codes"].flip(0).contiguous()
    save_file(weights, older_folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ValueError, match="semantic-ID table `item_codes` of the checkpoint"):
        Recommender.from_pretrained(older_folder)


def test_config_of_another_catalog_is_refused(older_folder):
    config = json.loads((older_folder / "config.json").read_text(encoding="utf-8"))
    config["items_fingerprint"] = "0" * 16
    (older_folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    with pytest.raises(ValueError, match="fingerprint 0000000000000000"):
        Recommender.from_pretrained(older_folder)


def test_options_of_a_call_overrule_the_recommender(recommender):
    options = {"num_beams": 29, "latent_aggregation": "sum"}

    result = recommender.recommend(["item 1"], top_k=3, exclude_seen=False, **options)
    first = recommender.model.config.first_item_token
    expected = recommender.model.recommend(torch.tensor([[first + 1]]), top_k=3, **options)

    assert list(result.scores) == pytest.approx(expected.scores[0].tolist())
    with pytest.raises(ValueError, match="no option `num_beam`: those of a .* Did you mean `num_beams`?"):
        recommender.recommend(["item 1"], num_beam=3)
    with pytest.raises(TypeError, match="The option `level_temperature` was removed"):
        recommender.recommend(["item 1"], level_temperature=[1.0, 1.0, 1.0])


def test_saved_options_are_those_of_a_loaded_recommender(folder):
    model = make_model(tiny_config(num_latent_tokens=2, max_history_length=4))
    model.recommend_config.num_beams = 29
    model.recommend_config.save(folder)

    recommender = Recommender.from_pretrained(folder, device="cpu", diversity=0.5)

    assert recommender.num_beams == 29
    assert recommender.search_options == {"num_beams": 29, "diversity": 0.5}


def test_one_history_answers_flat_lists_and_indexing_as_before_warns(recommender):
    one, batch = recommender.recommend(["item 1"]), recommender.recommend([["item 1"]])

    assert [one.item_ids] == batch.item_ids
    assert [list(one.scores)] == batch.scores
    assert len(one) == len(batch) == 1
    with pytest.warns(FutureWarning, match="One history is answered by a flat list"):
        assert one.item_ids[0] == batch.item_ids[0]


def test_batch_of_no_users_is_answered_by_none(recommender):
    assert recommender.recommend([]).item_ids == []
    assert recommender.score_items([]).shape == (0, 29)
    assert len(recommender.recommend([[]]).item_ids) == 1


def test_generators_are_read_as_lists(recommender):
    history = ["item 1", "item 4"]

    assert list(recommender.recommend(item for item in history).item_ids) == list(
        recommender.recommend(history).item_ids
    )
    found = recommender.recommend((item for item in ids) for ids in [history, []])
    assert found.item_ids == recommender.recommend([history, []]).item_ids


@pytest.mark.parametrize(
    "wrong", ["item 1", b"item 1", None, 7, {"item 1"}, {"item 1": 2}, [1, 2], ["item 1", ["item 2"]]]
)
def test_what_is_no_list_of_ids_is_refused_as_history_and_as_rule(recommender, wrong):
    with pytest.raises(TypeError, match="`histories`"):
        recommender.recommend(wrong)
    for name in ("exclude_items", "allow_items") if wrong is not None else ():
        with pytest.raises(TypeError, match=f"`{name}`"):
            recommender.recommend(["item 1"], **{name: wrong})


@pytest.mark.parametrize("top_k", [0, -1, 2.5, True, "3"])
def test_length_of_the_lists_is_a_whole_number(recommender, top_k):
    with pytest.raises(ValueError, match="`top_k` must be a whole number of at least 1"):
        recommender.recommend(["item 1"], top_k=top_k)


def test_rules_may_come_from_an_iterator_and_may_be_empty(recommender):
    everything = {"top_k": 29, "exclude_seen": False}
    excluding = recommender.recommend(["item 1"], **everything, exclude_items=(name for name in ["item 5"]))
    nothing = recommender.recommend(["item 1"], top_k=3, allow_items=[])
    anything = recommender.recommend(["item 1"], **everything, exclude_items=[])

    assert len(excluding.item_ids) == 28
    assert "item 5" not in list(excluding.item_ids)
    assert nothing.item_ids == []
    assert len(anything.item_ids) == 29
