"""Cards: complete for every architecture, readable for the Hub, safe against titles of strangers, known as ours."""

import json
import re

import pyarrow as pa
import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_genrec import LatteConfig, SemanticIds, __version__
from hf_genrec.hub.cards import (
    MAX_TEXT,
    code_of_ids,
    dataset_card,
    folder_card,
    is_generated,
    markdown_text,
    model_card,
    sample_output,
)
from hf_genrec.training.arguments import training_arguments
from hf_genrec.training.initial import start_fresh
from hf_genrec.training.runs import train_run
from saved_folders import ARCHITECTURES, make_folder, model_of


METRICS = {"recall@10": 0.25, "ndcg@10": 0.125, "invalid_rate": 0.0}
INTERVALS = {"intervals": {"recall@10": [0.2, 0.3], "ndcg@10": [0.1, 0.15]}}
BUCKETS = [
    {"bucket": "0", "num_users": 0, "recall@10": 0.0},
    {"bucket": "1-5", "num_users": 2, "recall@10": 0.0625},
    {"bucket": "21+", "num_users": 1, "recall@10": 0.5},
]
EVALUATION = {
    "protocol": "amazon2014",
    "split": "test",
    "num_users": 1234,
    "num_items": 29,
    "fingerprint": "ab" * 8,
    "model": METRICS | INTERVALS | {"by_popularity": BUCKETS, "coverage@10": 0.75},
    "baselines": {"popularity": METRICS | INTERVALS},
}
RUN = {
    "command": "train /home/somebody/data",
    "minutes": 4.0,
    "num_parameters": 12345,
    "settings": {"seed": 7, "protocol": "movielens", "data_fingerprint": "cd" * 8},
}
HOSTILE = pa.table(
    {
        "item_id": ["```\n# x", "a|b", '"; import os', "B001", "B002"],
        "codes": [[0, 1], [0, 1], [0, 2], [1, 1], [2, 2]],
        "title": ["<script>alert(1)</script>", "[x](http://evil)", "![](www.evil)", "{{ 7 * 7 }} @all", None],
    }
)


@pytest.mark.parametrize("evaluation", [None, EVALUATION], ids=["not evaluated", "evaluated"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_card_of_every_architecture_is_complete_and_survives_a_round_trip(tmp_path, architecture, evaluation):
    text = model_card(model_of(architecture).config, evaluation, repo_id="me/shop", run=RUN)

    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    card = ModelCard.load(tmp_path / "README.md")
    headings = ["Use it", "What it is", "Training data and protocol", "Evaluation", "Limits and biases", "Methods"]
    assert [line[3:] for line in card.text.splitlines() if line.startswith("## ")] == headings
    assert {"recommendation", architecture} <= set(card.data.tags)
    assert is_generated(str(card))
    assert "pipeline(" in text
    assert "None" not in card.text


def test_metrics_stand_in_the_metadata_that_the_hub_renders():
    data = yaml.safe_load(model_card(model_of("latte").config, EVALUATION, repo_id="me/shop").split("---\n")[1])

    (model,) = data["model-index"]
    (result,) = model["results"]
    assert model["name"] == "shop"
    assert result["task"]["type"] == "next-item-recommendation"
    assert result["dataset"] == {
        "name": "Amazon reviews 2014",
        "type": "amazon2014",
        "split": "test",
        "args": {"num_users": 1234, "fingerprint": "ab" * 8},
    }
    assert {metric["name"]: metric["value"] for metric in result["metrics"]} == METRICS
    assert result["metrics"][0]["args"] == {"confidence": 0.95, "interval": [0.2, 0.3]}


def test_metrics_stand_beside_the_baselines_with_intervals():
    text = model_card(model_of("sasrec").config, EVALUATION)

    assert "| popularity | 0.2500 [0.2000, 0.3000] | 0.1250 [0.1000, 0.1500] | 0.0000 |" in text
    assert "1,234 users" in text
    assert "recall@10 is 0.0625 for items with 1-5 interactions in training and 0.5000 for those with 21+." in text
    assert "75.0% of the catalog" in text


def test_training_and_its_data_are_named_without_paths_of_a_machine():
    text = model_card(model_of("rpg").config, run=RUN)

    assert "12,345 parameters, 4 minutes, seed 7" in text
    assert "MovieLens" in text
    assert "no commercial use" in text
    assert "somebody" not in text


def test_category_of_the_data_goes_from_training_into_the_card(make_prepared, tmp_path):
    prepared = make_prepared({"u": list("abcde"), "v": list("bacd")})
    prepared.metadata["category"] = "Toys"
    starting = start_fresh(prepared, None, shape={"d_model": 8, "num_heads": 2}, seed=0, architecture="sasrec")

    record = train_run(prepared, starting, tmp_path, training_arguments(tmp_path, settings={"max_steps": 1}))

    assert record["data"] == {"category": "Toys"}
    assert "- data: a log of its own, Toys; protocol `custom`" in folder_card(tmp_path)


def test_card_is_written_from_a_checkout_that_is_not_installed(tmp_path, monkeypatch):
    make_folder(tmp_path, "sasrec")
    monkeypatch.setattr("hf_genrec.hub.cards.version", {"transformers": "5.3", "torch": "2.7"}.__getitem__)

    assert f"hf-genrec {__version__}, transformers 5.3, torch 2.7" in folder_card(tmp_path)


def test_licence_space_and_data_set_are_named_where_they_are_known_and_never_made_up():
    plain = model_card(model_of("rpg").config, run=RUN)
    known = model_card(
        model_of("rpg").config, EVALUATION | {"protocol": "amazon2023"}, license="mit", space="me/shop-demo"
    )

    assert not {"license", "datasets"} & set(ModelCard(plain).data.to_dict())
    assert "/spaces/" not in plain
    assert ModelCard(known).data.license == "mit"
    assert ModelCard(known).data.datasets == "McAuley-Lab/Amazon-Reviews-2023"
    assert "<https://huggingface.co/spaces/me/shop-demo>" in known
    assert ModelCard(dataset_card(HOSTILE, license="cc0-1.0")).data.license == "cc0-1.0"


def test_what_only_a_card_says_is_kept_when_it_is_written_anew(tmp_path):
    folder = make_folder(tmp_path)
    sample = sample_output(["<b>one</b>"], [("two", "i2", -0.5)])
    given = {"sample": sample, "license": "mit", "space": "me/shop-demo"}
    (folder / "README.md").write_text(folder_card(folder, **given), encoding="utf-8")

    again = folder_card(folder, repo_id="me/shop")
    (folder / "README.md").unlink()
    published = folder_card(folder, published=again, license="apache-2.0")

    assert sample in again
    assert "- &lt;b&gt;one&lt;/b&gt;" in again
    assert ModelCard(again).data.license == "mit"
    assert published.count("me/shop-demo") == again.count("me/shop-demo") == 1
    assert ModelCard(published).data.license == "apache-2.0"
    assert sample in published


def test_collisions_are_counted():
    text = model_card(model_of("latte").config, items=HOSTILE)

    assert "2 of 5 items (40.0%) share all their codes with another, in groups of up to 2" in text
    assert "no two items share all their codes" in model_card(model_of("latte").config, items=HOSTILE.slice(1))


def test_titles_and_ids_of_strangers_are_text_and_never_markup():
    text = model_card(model_of("latte").config, items=HOSTILE)

    assert "<script" not in text
    assert "://evil" not in text
    assert "www.evil" not in text
    assert 'recommend(["B001", "B002"], top_k=10)' in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "alert" in line]
    assert rows == [r"| \`\`\` \# x | \[0, 1\] | &lt;script&gt;alert(1)&lt;/script&gt; |"]


@settings(max_examples=40)
@given(st.text())
def test_text_of_a_stranger_stays_one_cell(text):
    cell = markdown_text(text)

    assert "\n" not in cell
    assert "<" not in cell
    assert "|" not in cell.replace(r"\|", "")
    assert len(cell) <= 8 * MAX_TEXT


@settings(max_examples=40)
@given(st.lists(st.text()))
def test_history_of_the_example_is_a_list_in_python(item_ids):
    code = code_of_ids(item_ids)

    assert 1 <= len(json.loads(code)) <= 2
    assert "`" not in code


def test_everything_that_a_user_gave_is_text_and_never_markup():
    evil = "`<b>|x|</b>\n# WWW.evil.org javascript:alert(1) https://evil.org"
    evaluation = EVALUATION | {"protocol": evil, "split": evil, "baselines": {evil: METRICS | INTERVALS}}
    run = {"settings": {"seed": evil, "data_fingerprint": evil}, "data": {"category": evil}}
    ids = SemanticIds.from_codes(["a", "b"], [[1, 0], [0, 1]], codebook_size=3, policy="append")
    made = {"statistics": ids.statistics(), "settings": {"seed": evil, "quantizer": evil}, "data_fingerprint": evil}
    table = ids.to_table().append_column(evil, pa.array(["x", "y"]))
    quantizer = {"quantizer_type": evil, "encoder": evil}
    buckets = EVALUATION["model"] | {"by_popularity": [bucket | {"bucket": evil} for bucket in BUCKETS]}

    for card in (
        model_card(model_of("latte").config, evaluation | {"model": buckets}, run=run, quantizer=quantizer),
        dataset_card(table, made),
    ):
        text = re.sub(
            r"(?<!\\)`[^`\n]*`", "", card.split("---\n", 2)[2].partition("<!--")[0]
        )  # code shows what it holds
        assert "evil" in text
        for markup in ("<b>", "|x|", "\n# WWW", "WWW.e", "javascript:", "https://evil"):
            assert markup not in text


def test_edited_card_is_known():
    card = model_card(model_of("latte").config, EVALUATION)

    assert is_generated(card)
    assert is_generated(card.replace("\n", "\r\n").rstrip())
    assert not is_generated(card.replace("tags:", "license: mit\ntags:"))
    assert not is_generated(card.replace("## Methods", "## More methods"))
    assert not is_generated(card + "\nMore.\n")
    assert not is_generated("# Mine\n")
    assert not is_generated("")


def test_card_of_a_folder_holds_what_its_files_tell(tmp_path):
    folder = make_folder(tmp_path)
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION), encoding="utf-8")
    (folder / "quantizer").mkdir()
    (folder / "quantizer" / "config.json").write_text('{"quantizer_type": "rqvae"}', encoding="utf-8")
    (folder / "quantizer" / "encoder.json").write_text('{"model": "/home/me/encoder"}', encoding="utf-8")

    text = folder_card(folder, repo_id="me/shop")

    assert 'model="me/shop"' in text
    assert "Items of the history are left out\nunless `exclude_seen=False`" in text
    assert "semantic IDs by `rqvae` from texts read by encoder" in text
    assert "| i0 |" in text
    assert "0.2500 [0.2000, 0.3000]" in text


def test_second_save_renews_a_card_that_was_not_edited(tmp_path):
    folder = make_folder(tmp_path, titles=None)
    assert "| item_id | codes |\n" in (folder / "README.md").read_text(encoding="utf-8")

    make_folder(tmp_path)

    assert "| item_id | codes | title |\n" in (folder / "README.md").read_text(encoding="utf-8")


def test_card_of_semantic_ids_tells_how_they_were_made(tmp_path):
    ids = SemanticIds.from_codes(["a", "b", "c"], [[1, 0], [0, 1], [1, 0]], codebook_size=3, policy="append")
    record = {"statistics": ids.statistics(), "settings": {"seed": 5, "fit_on": "train"}, "data_fingerprint": "ef"}

    text = dataset_card(ids.to_table(), record, repo_id="me/ids")

    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    card = DatasetCard.load(tmp_path / "README.md")
    assert card.data.configs == [{"config_name": "default", "data_files": "ids.parquet"}]
    assert 'load_dataset("me/ids", split="train")' in text
    assert "3 codes per item, from 0; no two items share all their codes." in text
    assert "collision policy `append`: items that share all their codes before it 66.7%, after it 0.0%" in text
    assert "fit_on train, seed 5" in text
    assert is_generated(str(card))


def test_table_without_codes_has_no_card():
    with pytest.raises(ValueError, match=r"it lacks \['codes'\]"):
        dataset_card(pa.table({"item_id": ["a"]}))


def make_record(*, ks, confidence=0.95):
    values = {f"{name}@{k}": k / 100 for name in ("recall", "ndcg") for k in ks}
    values |= {"invalid_rate": 0.0, "intervals": {name: [0.0, 0.5] for name in values}}
    return {
        "protocol": "toy",
        "split": "test",
        "num_users": 1234,
        "num_items": 12,
        "confidence": confidence,
        "model": values,
        "baselines": {},
    }


def test_card_names_the_confidence_of_the_record():
    config = LatteConfig(num_items=12)

    assert "In brackets 95 % bootstrap intervals" in model_card(config, make_record(ks=(1, 10)))
    assert "In brackets 90 % bootstrap intervals" in model_card(config, make_record(ks=(1, 10), confidence=0.9))


def test_card_shows_the_cut_offs_of_the_record():
    config = LatteConfig(num_items=12)

    assert "| system | recall@10 | ndcg@10 | invalid_rate |" in model_card(config, make_record(ks=(1, 5, 10, 20)))
    assert "| system | recall@5 | ndcg@5 | invalid_rate |" in model_card(config, make_record(ks=(1, 5)))
