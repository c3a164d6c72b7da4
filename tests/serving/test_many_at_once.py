"""One recommender asked from threads, forked workers and for a long time; a folder that several processes write."""

import gc
import multiprocessing
import os
import random
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hf_genrec import Recommender
from saved_folders import ITEM_IDS, make_folder


@pytest.fixture(scope="module", params=["latte", "rpg", "sasrec"])
def recommender(request, tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("many") / "run", request.param)
    return Recommender.from_pretrained(folder, device="cpu", num_beams=9)


def requests(count, *, seed=0):
    """Calls with histories, rules and lengths of their own."""
    randomness = random.Random(seed)
    made = []
    for _ in range(count):
        history = randomness.sample(ITEM_IDS, randomness.randrange(6))
        options = {"top_k": randomness.randrange(1, 9), "exclude_seen": randomness.random() < 0.5}
        if randomness.random() < 0.3:
            options["allow_items"] = randomness.sample(ITEM_IDS, 11)
        if randomness.random() < 0.2:
            options["sample_seed"] = randomness.randrange(100)
        made.append((history, options))
    return made


def answer(recommender, request):
    history, options = request
    found = recommender.recommend([history], **options)
    return found.item_ids, found.scores


@pytest.mark.parametrize("count", [6, pytest.param(2000, marks=pytest.mark.slow)])
def test_eight_threads_get_the_answers_of_one(recommender, count):
    asked = requests(count)
    wanted = [answer(recommender, request) for request in asked]

    with ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda number: [answer(recommender, request) for request in asked], range(8))

    assert list(found) == [wanted] * 8


def test_threads_that_come_first_build_what_is_built_lazily_once(tmp_path):
    folder = make_folder(tmp_path / "run")
    wanted = answer(Recommender.from_pretrained(folder, device="cpu"), (["i3"], {}))
    fresh = Recommender.from_pretrained(folder, device="cpu")

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda _: answer(fresh, (["i3"], {})), range(8))) == [wanted] * 8


def test_forked_workers_give_the_answers_of_their_parent(recommender):
    asked = requests(5, seed=1)
    wanted = [answer(recommender, request) for request in asked]
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    workers = [
        context.Process(target=lambda: results.put([answer(recommender, request) for request in asked]))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()

    assert found == [wanted] * 2


@pytest.mark.parametrize("seconds", [0.1, pytest.param(600, marks=pytest.mark.slow)])
def test_memory_is_flat_however_long_it_serves(recommender, seconds):
    asked = requests(9, seed=2)
    for request in asked:
        answer(recommender, request)
    gc.collect()
    before, until = resident_bytes(), time.monotonic() + seconds

    while time.monotonic() < until:
        for request in asked:
            answer(recommender, request)
    gc.collect()

    assert resident_bytes() - before < 20_000_000


def resident_bytes():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def child(act):
    """A forked process that acts; its number."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 (shown by the parent's assertion)
            os.write(2, repr(error).encode())
        finally:
            os._exit(1)
    return pid


def status_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_two_processes_that_save_into_one_folder_leave_one_of_both(tmp_path):
    recommenders = [
        Recommender.from_pretrained(make_folder(tmp_path / str(seed), seed=seed), device="cpu") for seed in (0, 1)
    ]

    pids = [child(lambda one=one: [one.save_pretrained(tmp_path / "run") for _ in range(1)]) for one in recommenders]

    assert [status_of(pid) for pid in pids] == [0, 0]
    wanted = [answer(one, (["i3"], {})) for one in recommenders]
    assert answer(Recommender.from_pretrained(tmp_path / "run", device="cpu"), (["i3"], {})) in wanted
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "run"]


@pytest.mark.parametrize("count", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_save_leaves_the_old_recommender_or_the_new_one(tmp_path, count):
    recommenders = [
        Recommender.from_pretrained(make_folder(tmp_path / str(seed), seed=seed), device="cpu") for seed in (0, 1)
    ]
    wanted = [answer(one, (["i3"], {})) for one in recommenders]
    folder, randomness = recommenders[0].save_pretrained(tmp_path / "run"), random.Random(0)

    def save_both():
        while True:
            for one in recommenders[::-1]:
                one.save_pretrained(folder)

    for _ in range(count):
        pid = child(save_both)
        time.sleep(randomness.uniform(0.01, 0.4))
        os.kill(pid, signal.SIGKILL)
        assert status_of(pid) == -signal.SIGKILL
        assert answer(Recommender.from_pretrained(folder, device="cpu"), (["i3"], {})) in wanted


def test_full_disk_while_saving_leaves_the_old_recommender(tmp_path):
    recommender = Recommender.from_pretrained(make_folder(tmp_path / "run"), device="cpu")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    recommender.model.shared.weight.data += 1

    def save():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with pytest.raises(Exception, match=r"File too large|os error 27"):
            recommender.save_pretrained(tmp_path / "run")

    assert status_of(child(save)) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert os.listdir(tmp_path) == ["run"]
