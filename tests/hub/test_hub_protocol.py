"""Publishing and loading over the real protocol: the unmodified client speaks to a small Hub on loopback."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, constants, hf_hub_download
from typer.testing import CliRunner

import hub_server
from hf_genrec import GenRecTrainingArguments, Recommender, make_trainer
from hf_genrec.cli.main import app
from hf_genrec.hub.cards import is_generated
from hf_genrec.hub.push import push_ids, push_recommender, push_space
from hf_genrec.training.arguments import training_arguments
from hf_genrec.training.initial import start_fresh
from hf_genrec.training.runs import train_run
from hub_server import Fault
from invariants.model import random_codes
from toy_run import answers, save_toy_run


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_toy_run(tmp_path_factory.mktemp("saved") / "run")


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def actions(publication, *names):
    return {file.path: file.action for file in publication.files if file.path in names}


PROGRAM = """
import json
from huggingface_hub import hf_hub_download
shown = []
for repo_type, repo in (("model", "me/toy"), ("dataset", "me/toy-ids")):
    card = open(hf_hub_download(repo, "README.md", repo_type=repo_type), encoding="utf-8").read()
    for part in card.split("```python\\n")[1:]:
        exec(part.split("```")[0], {"print": lambda *words: shown.append(words)})
print("\\n" + json.dumps(shown))
"""


def test_code_of_the_cards_runs_for_a_stranger_and_recommends_the_same_items(hub, run, stranger):
    push_recommender(run, "toy")
    push_ids(run, "toy-ids")

    process = stranger.run(PROGRAM)

    assert process.returncode == 0, process.stderr
    (recommended,), (tokens,), (item_id, codes) = json.loads(process.stdout.splitlines()[-1])
    recommender = Recommender.from_pretrained(run, device="cpu")
    assert [entry["item_id"] for entry in recommended] == recommender.recommend(["i0", "i1"]).item_ids
    assert tokens == recommender.recommend(["i0", "i1"], exclude_seen=False).item_ids
    assert recommended[0]["title"] == f"the {recommended[0]['item_id']}"
    assert (item_id, codes) == ("i0", random_codes()[0].tolist())


def test_repository_is_private_and_holds_the_whole_folder_in_one_commit(hub, run):
    publication = push_recommender(run, "toy")

    repo = hub.model("me/toy")
    assert repo.private
    assert repo.messages == ["initial commit", "Upload recommender"]
    assert publication.commit == repo.head()
    assert publication.url == f"{hub.url}/me/toy"
    assert set(repo.files()) == {path.name for path in run.iterdir()} | {".gitattributes"}
    assert repo.files()["model.safetensors"] == (run / "model.safetensors").read_bytes()


def test_public_only_if_asked_for_and_open_to_strangers_then(hub, run, tmp_path, monkeypatch):
    push_recommender(run, "toy", private=False)
    push_recommender(run, "hidden")
    monkeypatch.delenv("HF_TOKEN")

    assert answers("me/toy", token=False) == answers(run)
    with pytest.raises(OSError, match="me/hidden"):
        answers("me/hidden", token=False)


def test_card_names_the_repository(hub, run):
    push_recommender(run, "toy")

    card = hub.model("me/toy").files()["README.md"].decode()
    assert '"me/toy"' in card
    assert is_generated(card)
    assert "REPO" not in ModelCard(card).text


def test_only_what_changed_travels(hub, run, tmp_path):
    push_recommender(run, "toy")
    save_toy_run(tmp_path / "other", shift=0.5)
    for name in ("model.safetensors", "manifest.json"):
        shutil.copy(tmp_path / "other" / name, run)
    since = len(hub.requests)

    publication = push_recommender(run, "toy")

    sent = hub.bytes_received(since=since)
    weights = (run / "model.safetensors").read_bytes()
    assert {f.path for f in publication.files if f.action == "upload"} == {"manifest.json", "model.safetensors"}
    assert sent[f"PUT {hub_server.Blob(weights, True).sha256}"] == len(weights)
    assert sum(sent.values()) < len(weights) + 8000
    assert hub.model("me/toy").files()["model.safetensors"] == weights


def test_client_itself_sends_no_file_twice(hub, run):
    operations = [CommitOperationAdd(name, run / name) for name in ("config.json", "items.parquet")]
    push_recommender(run, "toy")
    since = len(hub.requests)

    HfApi().create_commit("me/toy", operations, commit_message="again")

    assert len(hub.model("me/toy").messages) == 2
    assert not [path for _, path, _ in hub.requests[since:] if path.startswith("/storage/")]


def test_same_folder_again_makes_no_commit(hub, run):
    first = push_recommender(run, "toy")
    second = push_recommender(run, "toy")

    assert first.commit == second.commit
    assert {file.action for file in second.files} == {"unchanged"}


def test_old_revision_can_be_loaded(hub, run, tmp_path):
    first = push_recommender(run, "toy").commit
    second = push_recommender(save_toy_run(tmp_path / "other", shift=0.5), "toy").commit

    old = Recommender.from_pretrained("me/toy", revision=first, device="cpu")
    new = Recommender.from_pretrained("me/toy", device="cpu")

    assert (new.model.shared.weight - old.model.shared.weight).round(decimals=3).unique().tolist() == [0.5]
    assert first != second


def test_branch_is_made_and_main_stays(hub, run, tmp_path):
    first = push_recommender(run, "toy").commit
    publication = push_recommender(save_toy_run(tmp_path / "other", shift=0.5), "toy", revision="seed-2")

    assert hub.model("me/toy").branches == {"main": first, "seed-2": publication.commit}


def test_what_was_pulled_works_offline(hub, run, monkeypatch):
    push_recommender(run, "toy")
    expected = answers("me/toy")
    since = len(hub.requests)

    assert answers("me/toy", local_files_only=True) == expected
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert answers("me/toy") == expected
    assert hub.requests[since:] == []
    with pytest.raises(OSError, match="couldn't find them in the cached files"):
        answers("me/never", local_files_only=True)


def test_all_files_are_of_one_commit_even_if_somebody_publishes_meanwhile(hub, run, tmp_path, monkeypatch):
    from hf_genrec.serving import language_model as module

    push_recommender(run, "toy")
    other = save_toy_run(tmp_path / "other", shift=0.5)
    shutil.copy(run / "tokenizer.json", other / "tokenizer.json")
    load = module.AutoModel.from_pretrained

    def publish_then_load(*args, **kwargs):
        push_recommender(other, "toy")
        return load(*args, **kwargs)

    monkeypatch.setattr(module.AutoModel, "from_pretrained", publish_then_load)
    loaded = Recommender.from_pretrained("me/toy", device="cpu")

    assert loaded.model.shared.weight.tolist() == load(run).shared.weight.tolist()


def test_card_edited_on_the_hub_stays_unless_replacing_is_asked_for(hub, run):
    push_recommender(run, "toy")
    edited = hub.model("me/toy").files()["README.md"].replace(b"recommender", b"toy of mine", 1)
    HfApi().create_commit("me/toy", [CommitOperationAdd("README.md", edited)], commit_message="edit")
    (run / "evaluation.json").write_text("{}\n", encoding="utf-8")
    (run / "README.md").write_text("# written by hand\n", encoding="utf-8")

    kept = push_recommender(run, "toy")
    assert actions(kept, "README.md", "evaluation.json") == {"README.md": "keep", "evaluation.json": "upload"}
    assert hub.model("me/toy").files()["README.md"] == edited

    replaced = push_recommender(run, "toy", replace_card=True)
    assert actions(replaced, "README.md") == {"README.md": "upload"}
    assert hub.model("me/toy").files()["README.md"] == b"# written by hand\n"


def test_files_of_ours_go_with_the_folder_and_those_of_others_stay(hub, run):
    (run / "evaluation.json").write_text("{}\n", encoding="utf-8")
    (run / "README.md").write_text("# mine\n", encoding="utf-8")
    push_recommender(run, "toy")
    HfApi().create_commit("me/toy", [CommitOperationAdd("notes.txt", b"mine")], commit_message="notes")
    (run / "evaluation.json").unlink()

    publication = push_recommender(run, "toy")

    assert actions(publication, "evaluation.json", "notes.txt") == {"evaluation.json": "delete", "notes.txt": "keep"}
    assert {"notes.txt", "README.md", ".gitattributes"} < set(hub.model("me/toy").files())
    assert "evaluation.json" not in hub.model("me/toy").files()


def test_dry_run_lists_and_sends_nothing(hub, run):
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "optimizer.pt").write_bytes(b"123")

    plan = push_recommender(run, "toy", dry_run=True)

    assert hub.repos == {}
    assert actions(plan, "model.safetensors", "checkpoints/") == {
        "model.safetensors": "upload",
        "checkpoints/": "leave out",
    }
    assert (plan.commit, plan.url) == (None, None)
    assert {method for method, _, _ in hub.requests} == {"GET"}


def test_licence_and_space_stay_in_the_card_of_the_next_push(hub, run):
    push_recommender(run, "toy", license="mit", space="me/toy-demo")
    again = push_recommender(run, "toy")
    push_ids(run, "toy-ids", license="cc0-1.0")
    push_ids(run, "toy-ids")

    card = ModelCard(hub.model("me/toy").files()["README.md"].decode())
    assert actions(again, "README.md") == {"README.md": "unchanged"}
    assert card.data.license == "mit"
    assert "https://huggingface.co/spaces/me/toy-demo" in card.text
    assert ModelCard(hub.repo("dataset", "me/toy-ids").files()["README.md"].decode()).data.license == "cc0-1.0"
    with pytest.raises(ValueError, match="repo"):
        push_recommender(run, "toy", space="https://huggingface.co/spaces/me/toy-demo", dry_run=True)


def test_edited_card_is_left_alone_and_a_warning_says_what_it_lacks(hub, run, caplog):
    (run / "README.md").write_text("---\nlicense: mit\n---\n# mine\n", encoding="utf-8")

    push_recommender(run, "toy", license="mit")
    assert caplog.text == ""
    push_recommender(run, "toy", license="apache-2.0", space="me/toy-demo")

    assert hub.model("me/toy").files()["README.md"] == (run / "README.md").read_bytes()
    assert "`license: apache-2.0` in the block at its top and https://huggingface.co/spaces/me/toy-demo" in caplog.text
    assert "`--replace-card`" in caplog.text


def test_neighbours_of_an_earlier_push_go_unless_asked_for_again(hub, run):
    pq.write_table(pa.table({"item_id": ["i0"]}), run / "item_neighbors.parquet")

    words = ["push", str(run), "--repo", "toy", "--neighbors"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert "item_neighbors.parquet" in hub.model("me/toy").files()
    push_recommender(run, "toy")
    assert "item_neighbors.parquet" not in hub.model("me/toy").files()


def test_dry_run_needs_no_hub(run, monkeypatch):
    plan = push_recommender(run, "toy", dry_run=True)

    assert plan.repo_id == "toy"
    assert "was not asked" in plan.notes[0]


def test_loaded_recommender_publishes_what_it_was_loaded_from(hub, run):
    push_recommender(Recommender.from_pretrained(run, device="cpu"), "toy")
    push_recommender(Recommender.from_pretrained("me/toy", device="cpu"), "copy")

    files, copied = hub.model("me/toy").files(), hub.model("me/copy").files()
    assert set(files) == set(copied)
    assert {name for name in files if files[name] != copied[name]} == {"README.md"}


def test_recommender_does_not_publish_other_weights_than_it_serves(hub, run):
    recommender = Recommender.from_pretrained(run, device="cpu")
    recommender.model.shared.weight.data += 1

    with pytest.raises(ValueError, match="weights in memory"):
        push_recommender(recommender, "toy")
    with pytest.raises(ValueError, match="built in memory"):
        push_recommender(Recommender(recommender.model, recommender.items), "toy")
    assert hub.repos == {}


def test_recommender_does_not_publish_another_table_than_it_serves(hub, run):
    recommender = Recommender.from_pretrained(run, device="cpu")
    titles = pa.array(["another title"] * recommender.items.num_rows)
    pq.write_table(recommender.items.set_column(2, "title", titles), run / "items.parquet")

    with pytest.raises(ValueError, match="item table in memory"):
        push_recommender(recommender, "toy")
    assert hub.repos == {}


def test_plain_push_of_a_model_is_a_recommender_of_tokens(hub, run, tmp_path):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(run)
    model.push_to_hub("plain", private=True)

    files = set(hub.model("me/plain").files())
    assert {"model.safetensors", "config.json", "modeling_latte.py", "genrec_catalog.py"} <= files
    again = AutoModel.from_pretrained("me/plain")
    history = [[model.config.first_item_token + 3]]
    tokens = again.recommend(again.item_codes.new_tensor(history).long(), top_k=5).item_tokens
    assert (
        tokens.tolist() == model.recommend(model.item_codes.new_tensor(history).long(), top_k=5).item_tokens.tolist()
    )


def test_ids_become_a_data_set_with_a_card(hub, run):
    push_ids(run, "toy-ids")

    files = hub.repo("dataset", "me/toy-ids").files()
    assert set(files) == {".gitattributes", "README.md", "ids.parquet"}
    assert pq.read_table(pa.BufferReader(files["ids.parquet"])).column_names == ["item_id", "codes", "title"]
    assert "me/toy-ids" in files["README.md"].decode()


def test_space_holds_the_demo_and_names_the_recommender(hub, run, repository):
    push_recommender(run, "toy")
    publication = push_space("me/toy", "toy-demo")
    pinned = hub.model("me/toy").head()
    again = push_space("me/toy", "toy-demo")

    space = hub.repo("space", "me/toy-demo")
    files = space.files()
    assert files["app.py"] == (repository / "spaces_demo" / "app.py").read_bytes()
    assert ModelCard(files["README.md"].decode()).data["models"] == ["me/toy"]
    assert (space.private, space.settings["sdk"]) == (True, "gradio")
    assert space.settings["set"] == {"HF_GENREC_REPO": f"me/toy@{pinned}"}
    assert again.commit == publication.commit
    with pytest.raises(ValueError, match="is a folder"):
        push_space(str(run), "toy-demo")


def test_verbs_publish(hub, run):
    result = CliRunner().invoke(app, ["push", str(run), "--repo", "toy", "--public", "-m", "First", "--json"])
    assert result.exit_code == 0, result.stderr
    shown = json.loads(result.stdout)
    plan = CliRunner().invoke(app, ["push", str(run), "--repo", "toy", "--dry-run"])

    assert shown["url"] == f"{hub.url}/me/toy"
    assert hub.model("me/toy").messages[-1] == "First"
    assert not hub.model("me/toy").private
    assert "unchanged" in plan.stdout
    assert CliRunner().invoke(app, ["push-ids", str(run), "--repo", "ids"]).exit_code == 0
    assert CliRunner().invoke(app, ["push-space", "me/toy", "--repo", "demo"]).exit_code == 0
    assert set(hub.repos) == {("model", "me/toy"), ("dataset", "me/ids"), ("space", "me/demo")}


def test_licence_and_space_of_the_verbs_stand_in_the_cards(hub, run):
    words = ["--repo", "toy", "--license", "mit", "--space", "me/toy-demo"]
    assert CliRunner().invoke(app, ["push", str(run), *words]).exit_code == 0
    assert CliRunner().invoke(app, ["push-ids", str(run), "--repo", "ids", "--license", "cc0-1.0"]).exit_code == 0
    refused = CliRunner().invoke(app, ["push", str(run), "--repo", "toy", "--space", "no space"])

    card = ModelCard(hub.model("me/toy").files()["README.md"].decode())
    assert card.data.license == "mit"
    assert "<https://huggingface.co/spaces/me/toy-demo>" in card.text
    assert ModelCard(hub.repo("dataset", "me/ids").files()["README.md"].decode()).data.license == "cc0-1.0"
    assert refused.exit_code == 2
    assert "no space" in refused.stderr


@pytest.fixture
def train(make_prepared, tmp_path):
    """Trains a tiny model for a step into the folder `trained`."""
    prepared = make_prepared({"u": list("abcde"), "v": list("bacd"), "w": list("cbaed")})

    def train(**settings):
        shape = {"d_model": 8, "num_layers": 1, "num_heads": 2}
        starting = start_fresh(prepared, None, shape=shape, seed=0, architecture="sasrec")
        folder, settings = tmp_path / "trained", {"max_steps": 1, "push_to_hub": True} | settings
        return train_run(prepared, starting, folder, training_arguments(folder, settings=settings))

    return train


def test_training_publishes_the_finished_run_once_and_no_checkpoint(hub, train, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    record = train(hub_token=hub_server.TOKEN, hub_private_repo=False, hub_model_id="mine", hub_revision="first")

    repo = hub.model("me/mine")
    written = {path.name for path in (tmp_path / "trained").iterdir()}
    published = written - {"checkpoints", "item_neighbors.parquet"}  # neighbours only on request
    assert set(repo.files("first")) == published | {".gitattributes"}
    assert repo.messages == ["initial commit", "Upload recommender"]
    assert not repo.private
    assert list((tmp_path / "trained" / "checkpoints").glob("*/training_args.bin"))
    assert record["settings"]["training"] == {"max_steps": 1}


def test_run_is_kept_and_the_command_shown_if_publishing_fails(hub, train, tmp_path, caplog):
    hub.faults.append(Fault("/commit/main", times=1000, status=503))

    train()

    assert (tmp_path / "trained" / "training.json").is_file()
    assert f"hf-genrec push {tmp_path / 'trained'} --repo me/trained" in caplog.text
    assert len(hub.model("me/trained").messages) == 1


def test_training_to_publish_begins_only_if_the_hub_knows_the_user(hub, train, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="checkpoints are not uploaded"):
        train(hub_strategy="all_checkpoints")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConnectionError, match="hf auth login"):
        train(hub_model_id="me/mine")

    assert not (tmp_path / "trained").exists()


def test_trainer_alone_has_no_run_to_publish(make_prepared, tmp_path):
    prepared = make_prepared({"u": list("abcde"), "v": list("bacd")})
    model = start_fresh(prepared, None, shape={"d_model": 8, "num_heads": 2}, seed=0, architecture="sasrec").model

    with pytest.raises(ValueError, match="publishes a run folder"):
        make_trainer(model, prepared, GenRecTrainingArguments(output_dir=tmp_path, push_to_hub=True))


def test_a_changed_catalog_publishes_its_new_files_alone_and_the_repository_serves_it(hub, run):
    push_recommender(run, "toy")
    catalog = Recommender.from_pretrained(run, device="cpu").catalog
    taken = set(map(tuple, random_codes().tolist()))
    catalog.add([{"item_id": "new", "codes": next([0, 0, code] for code in range(5) if (0, 0, code) not in taken)}])
    catalog.remove(["i3"])

    publication = push_recommender(Recommender.from_pretrained(run, device="cpu"), "toy")

    uploaded = {file.path for file in publication.files if file.action == "upload"}
    assert uploaded == {"README.md", "catalog/rows-000002.parquet", "catalog/versions.json"}
    again = Recommender.from_pretrained("me/toy", device="cpu")
    assert again.catalog.versions() == catalog.versions()
    assert "new" in again.recommend(["i3"], top_k=29).item_ids
    assert "version 3" in hub_card("me/toy")
    push_ids(run, "toy-ids")
    listed = pq.read_table(hf_hub_download("me/toy-ids", "ids.parquet", repo_type="dataset"))["item_id"].to_pylist()
    assert set(listed) == set(again.recommend([[]], top_k=40).item_ids[0])


def hub_card(repo_id):
    with open(hf_hub_download(repo_id, "README.md"), encoding="utf-8") as file:
        return file.read()
