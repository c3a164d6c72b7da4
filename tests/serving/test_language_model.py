"""Recommenders around language models: folders, adapters, rules, live catalogs, evaluation."""

import json
import shutil
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch

from hf_genrec import Recommender
from hf_genrec.serving.export.catalog import export_catalog
from hf_genrec.serving.item_graph import write_item_graph
from hf_genrec.serving.language_model import load_language_model
from hf_genrec.training.teacher import load_teacher
from invariants.model import NUM_ITEMS, random_codes
from invariants.recommender import RecommenderInvariants
from tiny_llms import ITEM_IDS, ITEMS, save_llm_run


HISTORIES = [["i3", "i8", "i1"], [], ["i12"]]


class TestLanguageModel(RecommenderInvariants):
    ARCHITECTURES = ("native", "adapter")

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls, architecture, tmp_path_factory):
        folder, _ = save_llm_run(tmp_path_factory.mktemp("llm"), adapter=architecture == "adapter")
        return Recommender.from_pretrained(folder, device="cpu")


@pytest.fixture(params=["native", "adapter"], scope="module")
def saved(request, tmp_path_factory):
    return save_llm_run(tmp_path_factory.mktemp("llm"), adapter=request.param == "adapter")


def test_reload_answers_with_the_same_items_and_scores_to_the_last_bit(saved):
    folder, model = saved
    expected = Recommender(model, ITEMS).recommend(HISTORIES, top_k=7)

    loaded = Recommender.from_pretrained(folder, device="cpu")

    found = loaded.recommend(HISTORIES, top_k=7)
    assert found.item_ids == expected.item_ids
    assert found.scores == expected.scores
    assert (loaded.score_items(HISTORIES) == Recommender(model, ITEMS).score_items(HISTORIES)).all()


def test_folder_is_native_and_has_the_codes_in_one_place(saved):
    folder, _ = saved
    is_adapter = (folder / "adapter_config.json").exists()

    names = {path.name for path in folder.iterdir()}
    weights = (
        {"adapter_config.json", "adapter_model.safetensors"}
        if is_adapter
        else {"config.json", "generation_config.json", "model.safetensors"}
    )
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    ours = {"README.md", "items.parquet", "manifest.json", "recommend_config.json", "recommender.json"}
    assert names == weights | tokenizer | ours
    assert "codes" in pq.read_schema(folder / "items.parquet").names
    assert "item_codes" not in (folder / "recommender.json").read_text()
    if not is_adapter:
        assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_saved_again_it_is_the_same(saved, tmp_path):
    folder, _ = saved
    loaded = Recommender.from_pretrained(folder, device="cpu")

    loaded.save_pretrained(tmp_path / "again")

    for path in folder.iterdir():
        if path.suffix in (".safetensors", ".parquet") or path.name == "recommender.json":
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    assert loaded.saved_folder() == tmp_path / "again"


def test_reloaded_adapter_can_be_trained_further(tmp_path):
    folder, model = save_llm_run(tmp_path, adapter=True)

    loaded = Recommender.from_pretrained(folder, device="cpu").model

    names = [{name for name, p in each.named_parameters() if p.requires_grad} for each in (model, loaded)]
    assert names[0] == names[1] != set()


def test_counts_that_order_items_of_one_id_come_back(tmp_path):
    folder, _ = save_llm_run(tmp_path, counts=torch.arange(NUM_ITEMS))

    loaded = Recommender.from_pretrained(folder, device="cpu")

    assert loaded.model.item_counts.tolist() == list(range(NUM_ITEMS))


def test_items_come_and_go_without_new_rows(saved, tmp_path):
    folder = shutil.copytree(saved[0], tmp_path / "run")
    shop = Recommender.from_pretrained(folder, device="cpu")
    free = next(code for code in random_codes(124).tolist() if code not in random_codes().tolist())

    shop.catalog.add([{"item_id": "new", "title": "N", "codes": free}])
    shop.catalog.remove(["i3"])

    found = shop.recommend(["i8", "i3", "new"], top_k=NUM_ITEMS, exclude_seen=False).item_ids
    assert sorted(found) == sorted({*ITEM_IDS, "new"} - {"i3"})
    again = Recommender.from_pretrained(folder, device="cpu")
    assert (
        again.recommend(["i8", "new"], top_k=9, exclude_seen=False).item_ids
        == shop.recommend(["i8", "new"], top_k=9, exclude_seen=False).item_ids
    )


def test_questions_about_items_and_users_are_answered(saved):
    shop = Recommender.from_pretrained(saved[0], device="cpu")

    assert shop.item_vectors().shape == (NUM_ITEMS, 20)
    assert shop.encode_users(HISTORIES).shape == (3, 20)
    assert shop.similar_items("i3", 2)[0][0] != "i3"
    reasons = shop.explain(["i3", "i8"], "i5")
    assert {reason.item_id for reason in reasons} == {"i3", "i8"}


def test_pipeline_recommends_the_same(saved):
    import transformers

    found = transformers.pipeline("next-item-recommendation", model=str(saved[0]), device="cpu")(HISTORIES, top_k=4)

    expected = Recommender.from_pretrained(saved[0], device="cpu").recommend(HISTORIES, top_k=4)
    assert [[entry["item_id"] for entry in row] for row in found] == expected.item_ids
    assert found[0][0]["title"] == "T" + found[0][0]["item_id"][1:]


def test_changed_file_of_the_folder_is_refused(saved, tmp_path):
    folder = shutil.copytree(saved[0], tmp_path / "run")
    text = (folder / "recommender.json").read_text()
    (folder / "recommender.json").write_text(text.replace("a user", "an user"))

    with pytest.raises(ValueError, match=r"recommender.json is not the file that was saved"):
        Recommender.from_pretrained(folder, device="cpu")


def test_codes_of_other_items_are_refused(saved, tmp_path):
    folder = shutil.copytree(saved[0], tmp_path / "run")
    table = pq.read_table(folder / "items.parquet")
    other = table.set_column(table.column_names.index("codes"), "codes", table["codes"].take(list(range(28, -1, -1))))
    pq.write_table(other, folder / "items.parquet")
    (folder / "manifest.json").unlink()

    with pytest.raises(ValueError, match="The semantic-ID table .* is not the one"):
        Recommender.from_pretrained(folder, device="cpu")


def test_other_tokenizer_is_refused(saved, tmp_path):
    folder = shutil.copytree(saved[0], tmp_path / "run")
    text = (folder / "recommender.json").read_text().replace("a user has", "no user has")
    (folder / "recommender.json").write_text(text)

    with pytest.raises(ValueError, match="does not read 'no user has taken: ' as the tokens in recommender.json"):
        load_language_model(folder, check_files=False)


def test_base_that_is_gone_is_named(tmp_path):
    folder, _ = save_llm_run(tmp_path, adapter=True)
    shutil.rmtree(tmp_path / "base")

    with pytest.raises((OSError, ValueError), match="base"):
        Recommender.from_pretrained(folder, device="cpu")


def test_adapter_without_all_new_rows_is_refused(tmp_path):
    folder, _ = save_llm_run(tmp_path, adapter=True)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["trainable_token_indices"] = {"embed_tokens": [301]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))

    with pytest.raises(ValueError, match="does not hold all rows that were added to the 301 embeddings"):
        load_language_model(folder, check_files=False)


def test_catalog_for_another_engine_names_the_tokens_of_the_language_model(saved, tmp_path):
    shop = Recommender.from_pretrained(saved[0], device="cpu")

    lines = export_catalog(shop, tmp_path / "items.jsonl", format="nvidia").read_text().splitlines()

    tokens = shop.model.tokenizer.convert_ids_to_tokens(json.loads(lines[3])["token_ids"])
    assert tokens == [f"<s_{letter}_{code}>" for letter, code in zip("abc", random_codes()[3].tolist(), strict=True)]


def test_language_model_teaches_and_has_no_item_graph(saved):
    taught = SimpleNamespace(num_items=NUM_ITEMS, items_fingerprint=None)

    assert load_teacher(saved[0], taught).config.model_type == "causal_lm"
    with pytest.raises(ValueError, match="holds a 'causal_lm' model, which writes codes one by one"):
        write_item_graph(saved[0])
