"""Recommenders around language models on the Hub: what is published, the card, the Space, loading by name."""

import json
import shutil
import sys

import pytest
from huggingface_hub import HfApi, ModelCard

from hf_genrec import Recommender
from hf_genrec.hub.files import hub_files
from hf_genrec.hub.push import push_recommender, push_space
from tiny_llms import save_llm_run


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Both kinds of folders; the adapter's base has the name of a repository."""
    native, _ = save_llm_run(tmp_path_factory.mktemp("native"))
    adapter, _ = save_llm_run(tmp_path_factory.mktemp("adapter"), adapter=True)
    return {"native": native, "adapter": adapter}


def published_adapter(hub, folder, target):
    """The base in a repository of its own, and the adapter's folder with its name."""
    api = HfApi()
    api.create_repo("me/base")
    api.upload_folder(repo_id="me/base", folder_path=folder.parent / "base")
    run = shutil.copytree(folder, target)
    settings = json.loads((run / "adapter_config.json").read_text())
    text = json.dumps(settings | {"base_model_name_or_path": "me/base"})
    (run / "adapter_config.json").write_text(text)
    (run / "manifest.json").unlink()
    (run / "README.md").unlink()
    return run


def test_native_folder_is_published_whole(saved):
    names = set(hub_files(saved["native"]))

    assert names == {path.name for path in saved["native"].iterdir()}
    assert {"recommender.json", "config.json", "model.safetensors", "items.parquet"} < names


def test_adapter_with_its_base_at_a_path_of_this_machine_is_refused(saved):
    with pytest.raises(ValueError, match="holds a path of this machine at `base_model_name_or_path`"):
        hub_files(saved["adapter"])


def test_dry_run_lists_the_files_of_a_native_folder(hub, saved):
    plan = push_recommender(saved["native"], "toy", dry_run=True)

    assert hub.repos == {}
    assert {file.action for file in plan.files} == {"upload"}


def test_adapter_repository_loads_by_name_together_with_its_base(hub, saved, tmp_path):
    run = published_adapter(hub, saved["adapter"], tmp_path / "run")

    push_recommender(run, "toy")

    expected = Recommender.from_pretrained(saved["adapter"], device="cpu").recommend(["i3"], top_k=7)
    found = Recommender.from_pretrained("me/toy", device="cpu").recommend(["i3"], top_k=7)
    assert (found.item_ids, found.scores) == (expected.item_ids, expected.scores)
    card = ModelCard(hub.model("me/toy").files()["README.md"].decode())
    assert (card.data.library_name, card.data.base_model) == ("peft", "me/base")
    assert "`me/base`; embeddings of the base are first grown to 320 rows" in " ".join(card.text.split())


def test_space_of_a_language_model_asks_for_the_package(hub, saved):
    push_recommender(saved["native"], "toy")

    push_space("me/toy", "toy-demo")

    requirements = hub.repos["space", "me/toy-demo"].files()["requirements.txt"].decode().splitlines()
    assert requirements[-1] == "hf-genrec[llm]"


def test_card_says_that_the_package_is_needed_and_what_a_prompt_is(saved):
    card = ModelCard((saved["native"] / "README.md").read_text(encoding="utf-8"))

    assert "# An LLM recommender" in card.text
    assert 'Recommender.from_pretrained("REPO")' in card.text
    assert "trust_remote_code" not in card.text
    assert "A prompt is `a user has taken:`, the items, `next: <|sid_begin|>`" in " ".join(card.text.split())


@pytest.mark.parametrize("kind", ["native", "adapter"])
def test_space_shows_what_the_recommender_recommends(saved, repository, kind, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "spaces_demo"))
    import served_model

    served = served_model.load_model(saved[kind])

    answer = served.recommend([3, 7], served_model.Settings(top_k=5, num_beams=20))
    expected = Recommender.from_pretrained(saved[kind], device="cpu").recommend(
        ["i3", "i7"], top_k=5, num_beams=20, exclude_seen=False
    )
    assert [served.item_ids[item] for item in answer.items] == expected.item_ids
    assert served.kind == "LLM"
    assert "served_model" in sys.modules
