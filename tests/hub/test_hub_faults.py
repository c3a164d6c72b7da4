"""A Hub that breaks: nothing half-published, nothing half-loaded, and the next try works."""

import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from huggingface_hub.errors import HTTPError

import hub_server
from hf_genrec import Recommender
from hf_genrec.hub.push import push_recommender
from hub_server import Fault
from toy_run import answers, save_toy_run


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_toy_run(tmp_path_factory.mktemp("saved") / "run")


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


@pytest.mark.parametrize(
    "where",
    ["POST /api/repos/create", "/preupload/", "/objects/batch", "PUT /storage/", "POST /verify/", "/commit/main"],
)
def test_push_survives_a_server_that_answers_500_twice(hub, run, where):
    hub.faults.append(Fault(where, times=2, status=500))

    push_recommender(run, "toy")

    assert hub.faults[0].times == 0
    files = hub.model("me/toy").files()
    assert {name: files[name] for name in ("model.safetensors", "items.parquet")} == {
        name: (run / name).read_bytes() for name in ("model.safetensors", "items.parquet")
    }
    assert len(hub.model("me/toy").messages) == 2


@pytest.mark.parametrize("where", ["PUT /storage/", "/commit/main"])
def test_cut_upload_leaves_the_branch_as_it_was_and_the_next_push_works(hub, run, tmp_path, where):
    first = push_recommender(run, "toy").commit
    save_toy_run(run, shift=0.5)
    fault = Fault(where, times=1000, cut_after=7)
    hub.faults.append(fault)

    with pytest.raises(ConnectionError, match="repository is as it was"):
        push_recommender(run, "toy")
    assert hub.model("me/toy").branches == {"main": first}
    assert hub.model("me/toy").files()["model.safetensors"] != (run / "model.safetensors").read_bytes()

    fault.times = 0
    push_recommender(run, "toy")
    assert hub.model("me/toy").files()["model.safetensors"] == (run / "model.safetensors").read_bytes()


def test_upload_that_is_cut_once_goes_on(hub, run):
    hub.faults.append(Fault("PUT /storage/", times=1, cut_after=1000))

    push_recommender(run, "toy")

    assert answers("me/toy") == answers(run)


def test_push_on_top_of_a_commit_that_came_in_between(hub, run, monkeypatch):
    push_recommender(run, "toy")
    save_toy_run(run, shift=0.5)
    repo, commit = hub.model("me/toy"), hub.commit

    def somebody_was_faster(*args):
        monkeypatch.setattr(hub, "commit", commit)
        repo.commit("main", repo.commits[repo.head()] | {"notes.txt": hub_server.Blob(b"mine", False)}, "faster")
        return commit(*args)

    monkeypatch.setattr(hub, "commit", somebody_was_faster)
    push_recommender(run, "toy")

    assert repo.messages[-2:] == ["faster", "Upload recommender"]
    assert repo.files()["notes.txt"] == b"mine"


def test_two_pushes_at_once_leave_one_after_the_other(hub, run, tmp_path):
    runs = [run, save_toy_run(tmp_path / "other", shift=0.5)]

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda folder: push_recommender(folder, "toy"), runs))

    weights = [(folder / "model.safetensors").read_bytes() for folder in runs]
    assert hub.model("me/toy").files()["model.safetensors"] in weights
    assert hub.model("me/toy").messages == ["initial commit", "Upload recommender", "Upload recommender"]
    answers("me/toy")


def forked(act):
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def test_killed_push_leaves_the_old_commit_or_the_new_one(hub, run, tmp_path):
    push_recommender(run, "toy")
    other = save_toy_run(tmp_path / "other", shift=0.5)
    wanted = [answers(run), answers(other)]

    for seconds in (0.02, 0.06, 0.15):
        pid = forked(lambda: [push_recommender(folder, "toy") for folder in (other, run) * 99])
        threading.Event().wait(seconds)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert answers("me/toy") in wanted


def test_two_processes_share_a_cache(hub, run):
    push_recommender(run, "toy")
    wanted = answers(run)

    def load():
        assert answers("me/toy") == wanted

    pids = [forked(load) for _ in range(2)]

    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]


def test_wrong_token_is_an_error_and_not_tried_again(hub, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)

    with pytest.raises(OSError, match="401"):
        push_recommender(run, "me/toy")

    assert [path for method, path, _ in hub.requests if method == "POST"] == ["/api/repos/create"]


@pytest.mark.parametrize("name", ["items.parquet", "model.safetensors", "tokenizer.json"])
def test_cut_download_loads_nothing_and_the_second_try_works(hub, run, name):
    push_recommender(run, "toy")
    content = hub.model("me/toy").files()[name]
    place = f"/storage/{hub_server.Blob(content, True).sha256}" if name.endswith(hub_server.LARGE) else f"/{name}"
    fault = Fault(f"GET {place}" if "storage" in place else place, times=1000, cut_after=0)
    hub.faults.append(fault)

    with pytest.raises((OSError, HTTPError)):
        Recommender.from_pretrained("me/toy", device="cpu")

    fault.times = 0
    assert answers("me/toy") == answers(run)


def test_cut_download_goes_on_where_it_stopped(hub, run):
    push_recommender(run, "toy")
    hub.faults.append(Fault("GET /storage/", times=1, cut_after=100))

    assert answers("me/toy") == answers(run)


def test_loading_survives_a_server_that_answers_500_twice_in_one_of_two_tries(hub, run):
    push_recommender(run, "toy")
    hub.faults.append(Fault("/resolve/", times=2, status=500))

    try:
        found = answers("me/toy")
    except OSError:
        found = answers("me/toy")

    assert found == answers(run)
