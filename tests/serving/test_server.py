"""The HTTP server in this process: answers, batches, limits, who may change the catalog, and how it ends."""

import asyncio
import contextlib
import importlib
import json
import os
import re
import signal
import sys
import threading
import time

import httpx
import numpy as np
import pyarrow as pa
import pytest

from hf_genrec import Recommender
from hf_genrec.serving.server.app import create_app, serve
from hf_genrec.serving.server.batches import MicroBatcher, QueueFullError
from hf_genrec.serving.server.settings import ServerSettings
from invariants.model import make_sasrec
from live_shops import free_codes, shop_of
from saved_folders import ITEM_IDS, make_folder
from served import accepts, assert_soon, served


@pytest.fixture(scope="module")
def recommender(tmp_path_factory):
    return Recommender.from_pretrained(make_folder(tmp_path_factory.mktemp("server") / "run"), device="cpu")


@contextlib.asynccontextmanager
async def client_of(recommender, **settings):
    app = create_app(recommender, ServerSettings(**settings))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    address = "http://127.0.0.1:8000"
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url=address) as client:
        client.server = app.state.server
        yield client


def ask(recommender, *bodies, path="/recommend", headers=None, **settings):
    """The answers to requests that are sent at once; a body of bytes is sent as it is."""

    async def main():
        async with client_of(recommender, **settings) as client:
            ways = ({"content": b, "headers": {"Content-Type": "application/json"}} for b in bodies)
            ways = (
                way if isinstance(way["content"], bytes) else {"json": way["content"], "headers": headers}
                for way in ways
            )
            return await asyncio.gather(*(client.post(path, **way) for way in ways))

    return asyncio.run(main())


def metrics_of(recommender, *bodies, **settings):
    """What `/metrics` says after some requests that were sent at once."""

    async def main():
        async with client_of(recommender, **settings) as client:
            await asyncio.gather(*(client.post("/recommend", json=body) for body in bodies))
            page = (await client.get("/metrics")).text
            return {name: float(value) for name, value in re.findall(r"^(\S+) (\S+)$", page, flags=re.MULTILINE)}

    return asyncio.run(main())


@pytest.mark.parametrize(
    "body",
    [
        {"history": ["i3", "i5"], "top_k": 4},
        {"history": [], "exclude_items": ["i1", "sold out"]},
        {"history": ["i3"], "allow_items": ["i7", "i3", "i9"], "exclude_seen": False},
        {"history": ["i3"], "options": {"num_beams": 7, "sample_seed": 3}},
        {"histories": [["i3"], [], ["i8", "i2", "i4"]], "top_k": 3},
        {"histories": [["i3"], []], "exclude_items": [["i1"], []], "allow_items": [["i1", "i2"], ["i4"]]},
    ],
)
def test_answers_are_those_of_the_recommender(recommender, body):
    arguments = {name: value for name, value in body.items() if name not in ("history", "histories", "options")}
    histories = body.get("histories", [body.get("history")])
    wanted = recommender.recommend(histories, **arguments, **body.get("options", {}))
    wanted = wanted.of_one_user() if "history" in body else wanted

    (answer,) = ask(recommender, body)

    assert answer.status_code == 200, answer.text
    assert answer.json()["item_ids"] == list(wanted.item_ids)
    assert answer.json()["scores"] == list(wanted.scores)


def test_ids_that_the_catalog_lacks_are_counted_for_each_request(recommender):
    answers = ask(recommender, {"history": ["i3", "x", "y"]}, {"history": ["i3"]})

    assert [answer.json()["num_unknown"] for answer in answers] == [2, 0]


def test_requests_of_equal_options_share_a_batch_and_get_the_answers_they_get_alone(recommender):
    bodies = [{"history": [item], "exclude_items": [ITEM_IDS[0]] if item == "i5" else None} for item in ITEM_IDS[1:8]]
    alone = [recommender.recommend(body["history"], exclude_items=body["exclude_items"]).item_ids for body in bodies]

    assert [answer.json()["item_ids"] for answer in ask(recommender, *bodies, window_ms=50)] == alone
    counted = metrics_of(recommender, *bodies, {"history": ["i3"], "top_k": 3}, window_ms=50)
    assert counted["hf_genrec_batch_users_count"] == 2
    assert counted["hf_genrec_batch_users_sum"] == 8


def test_without_micro_batching_each_request_is_computed_alone(recommender):
    counted = metrics_of(recommender, *[{"history": [item]} for item in ITEM_IDS[:5]], max_batch=1)

    assert counted["hf_genrec_batch_users_count"] == 5
    assert counted['hf_genrec_requests_total{route="/recommend",status="200"}'] == 5


@pytest.mark.parametrize(
    ("body", "status", "field", "limit"),
    [
        ({"history": ["i1"], "top_k": 21}, 422, "top_k", "20"),
        ({"history": ["i1"] * 12}, 422, "history", "11"),
        ({"histories": [["i1"] * 12]}, 422, "histories", "11"),
        ({"histories": [["i1"]] * 6}, 422, "histories", "5"),
        ({"history": ["i1"], "exclude_items": ["i1"] * 8}, 422, "exclude_items", "7"),
        ({"history": ["i1"], "options": {"num_beams": 99}}, 422, "num_beams", "50"),
        ({"history": ["i1"], "options": {"beams": 5}}, 422, "beams", "not permitted"),
        ({"history": ["i1"], "options": {"memory_budget": 5}}, 422, "memory_budget", "not permitted"),
        ({"history": ["i1"], "options": {"num_propagations": 5}}, 422, "num_propagations", "There is no option"),
        ({"history": ["i1"], "allow_items": ["x"]}, 422, "allow_items", "no id of the catalog"),
        ({"history": ["i1"], "histories": []}, 422, "history", "either"),
        ({}, 422, "history", "either"),
        ({"history": [3]}, 422, "history", "string"),
        ({"history": "i1"}, 422, "history", "list"),
        ({"history": ["i1"], "top_k": True}, 422, "top_k", "integer"),
        ({"histories": [["i1"]], "exclude_items": [["i1"], ["i2"]]}, 422, "exclude_items", "1"),
        (b'{"history": ["i1"], "options": {"diversity": NaN}}', 422, "diversity", "finite"),
        (b'{"history": ["\\ud800"]}', 422, "history", "unicode"),
        (b'{"history": [', 422, "body", "JSON"),
        (b"[" * 100_000, 400, "body", "parsing"),
        (b'{"history": ["' + b"i" * 300_000 + b'"]}', 413, "max_body", "200000"),
    ],
)  # fmt: skip
def test_request_beyond_a_limit_is_refused_naming_field_and_limit(recommender, body, status, field, limit):
    limits = {"max_top_k": 20, "max_history_length": 11, "max_histories": 5, "max_ids": 7, "max_beams": 50}

    (answer,) = ask(recommender, body, max_body=200_000, **limits)

    assert answer.status_code == status, answer.text
    assert field in answer.text
    assert limit in answer.text
    assert len(answer.text) < 1000


def test_body_of_unknown_length_is_cut_off_at_the_limit(recommender):
    async def chunks():
        for _ in range(30):
            yield b"[" * 10_000

    async def main():
        async with client_of(recommender, max_body=200_000) as client:
            return await client.post("/recommend", content=chunks(), headers={"Content-Type": "application/json"})

    answer = asyncio.run(main())
    assert answer.status_code == 413
    assert "`max_body` = 200000 bytes" in answer.json()["detail"]


class Slow:
    """A recommender that computes for a while, or raises."""

    def __init__(self, recommender, *, seconds=0.0, error=None):
        self.found, self.seconds, self.error = recommender, seconds, error

    def __getattr__(self, name):
        return getattr(self.found, name)

    def recommend(self, histories, **options):
        time.sleep(self.seconds)
        if self.error is not None and histories != [[]]:
            raise self.error
        return self.found.recommend(histories, **options)


def test_request_that_finds_the_queue_full_is_told_when_to_come_back(recommender):
    slow = Slow(recommender, seconds=0.1)
    bodies = [{"history": ["i1"], "top_k": number} for number in range(1, 6)]

    answers = ask(lambda: slow, {"history": ["i1"]}, max_queue=3, max_histories=3)
    assert answers[0].status_code == 503  # still loading

    async def main():
        async with client_of(lambda: slow, max_queue=3, max_histories=3) as client:
            while (await client.get("/ready")).status_code != 200:
                await asyncio.sleep(0.01)
            return await asyncio.gather(*(client.post("/recommend", json=body) for body in bodies))

    answers = asyncio.run(main())
    statuses = [answer.status_code for answer in answers]
    assert sorted(set(statuses)) == [200, 429]
    refused = answers[statuses.index(429)]
    assert int(refused.headers["Retry-After"]) >= 1
    assert "max_queue" in refused.json()["detail"]
    assert "3" in refused.json()["detail"]


def ready_then(recommender, body, **settings):
    async def main():
        async with client_of(lambda: recommender, **settings) as client:
            while (await client.get("/ready")).status_code != 200:
                await asyncio.sleep(0.01)
            return await client.post("/recommend", json=body), client.server.batches.num_waiting

    return asyncio.run(main())


def test_request_past_its_deadline_is_answered_by_504(recommender):
    answer, num_waiting = ready_then(Slow(recommender, seconds=0.1), {"history": ["i1"], "timeout": 0.02})

    assert answer.status_code == 504
    assert "0.02 seconds" in answer.json()["detail"]
    assert num_waiting == 0


def test_fault_of_the_server_shows_no_trace_to_clients(recommender):
    answer, _ = ready_then(Slow(recommender, error=RuntimeError("secret")), {"history": ["i1"]})

    assert answer.status_code == 500
    assert answer.json() == {"detail": "The server failed; its log says why."}


def test_model_that_cannot_be_loaded_ends_the_server():
    def load():
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        serve(load, ServerSettings(port=0))


def test_request_that_fails_does_not_fail_those_of_its_batch():
    def compute(key, contents):
        if "bad" in contents:
            raise ValueError("bad")
        return [f"{key} {content}" for content in contents]

    async def main():
        batches = MicroBatcher(compute, size=8, window=0.01, max_waiting=9)
        task = asyncio.create_task(batches.run())
        asked = (batches.ask("key", content, num_users=2, timeout=5) for content in ("a", "bad", "b"))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        with pytest.raises(QueueFullError):
            await batches.ask("key", "c", num_users=10, timeout=5)
        task.cancel()
        batches.close()
        return answers

    first, second, third = asyncio.run(main())
    assert (first, str(second), third) == ("key a", "bad", "key b")


def test_batches_hold_at_most_their_size_and_the_oldest_options_come_first():
    batches_seen = []

    def compute(key, contents):
        batches_seen.append((key, contents))
        return contents

    async def main():
        batches = MicroBatcher(compute, size=3, window=0, max_waiting=99)
        asked = [("x", 1), ("y", 2), ("x", 3), ("x", 4), ("x", 5), ("y", 6)]
        waiting = [asyncio.create_task(batches.ask(key, n, num_users=1, timeout=5)) for key, n in asked]
        await asyncio.sleep(0)
        task = asyncio.create_task(batches.run())
        assert await asyncio.gather(*waiting) == [1, 2, 3, 4, 5, 6]
        task.cancel()
        batches.close()

    asyncio.run(main())
    assert batches_seen == [("x", [1, 3, 4]), ("y", [2, 6]), ("x", [5])]


def get(recommender, path, *, headers=None, **settings):
    async def main():
        async with client_of(recommender, **settings) as client:
            return await client.get(path, headers=headers)

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("settings", "headers", "status"),
    [
        ({"host": "0.0.0.0"}, {}, 403),
        ({"host": "0.0.0.0", "token": "s3"}, {}, 401),
        ({"host": "0.0.0.0", "token": "s3"}, {"Authorization": "Bearer s4"}, 401),
        ({"host": "0.0.0.0", "token": "s3"}, {"Authorization": "Bearer s3"}, None),
        ({}, {}, None),
        ({}, {"Host": "shop.example:8000"}, 403),  # a page that a browser on this machine shows
        ({"token": "s3"}, {}, 401),
    ],
)
def test_catalog_is_for_those_with_the_token_or_without_one_for_this_machine(recommender, settings, headers, status):
    found = get(recommender, "/catalog/status", headers=headers, **settings).status_code

    assert found == status if status else found not in (401, 403)


def test_info_says_what_runs(recommender):
    info = get(recommender, "/info", max_top_k=20).json()

    assert (info["architecture"], info["dtype"]) == ("LatteForConditionalGeneration", "float32")
    assert (info["num_items"], info["limits"]["max_top_k"]) == (29, 20)
    assert (info["catalog_version"], info["fingerprint"]) == (1, recommender.catalog.version.fingerprint)


def test_draining_server_answers_and_closes_the_connection(recommender):
    async def main():
        async with client_of(recommender) as client:
            before = await client.get("/ready")
            client.server.is_draining = True
            return before, await client.get("/ready"), await client.post("/recommend", json={"history": ["i1"]})

    before, after, answer = asyncio.run(main())
    assert (before.status_code, before.json()) == (200, {"status": "ready"})
    assert (after.status_code, after.json()) == (503, {"status": "draining"})
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    assert "connection" not in before.headers


def test_requests_in_flight_are_answered_after_sigterm(recommender):
    statuses = []
    with served(Slow(recommender, seconds=0.2), drain=0.0, max_batch=1) as (address, pid):
        with httpx.Client(base_url=address, timeout=20) as client, httpx.Client(base_url=address, timeout=20) as late:

            def post():
                statuses.append(client.post("/recommend", json={"history": ["i1"]}).status_code)

            clients = [threading.Thread(target=post) for _ in range(5)]
            for thread in clients:
                thread.start()
            assert_soon(lambda: "hf_genrec_requests_in_flight 6.0" in late.get("/metrics").text)  # with this one
            os.kill(pid, signal.SIGTERM)
            assert_soon(lambda: not accepts(address))
            assert late.get("/health").json() == {"status": "alive"}  # on a connection that was open before
            for thread in clients:
                thread.join()

        assert statuses == [200] * 5
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM


def test_missing_extra_is_named_with_its_command(monkeypatch):
    monkeypatch.delitem(sys.modules, "hf_genrec.serving.server.app")
    monkeypatch.setitem(sys.modules, "uvicorn", None)

    with pytest.raises(ImportError, match=re.escape('pip install "hf-genrec[serve]"')):
        importlib.import_module("hf_genrec.serving.server.app")


def test_page_of_the_routes_holds_limits_and_options(recommender):
    page = get(recommender, "/openapi.json", max_top_k=20).json()
    schemas = page["components"]["schemas"]

    assert schemas["RecommendRequest"]["properties"]["top_k"]["maximum"] == 20
    assert "num_beams" in schemas["RecommendOptions"]["properties"]
    assert set(page["paths"]) >= {"/recommend", "/catalog/add", "/catalog/remove", "/catalog/rollback", "/info"}
    assert json.dumps(page)


def test_catalog_changes_while_requests_are_answered():
    shop = shop_of("latte")
    free = free_codes(shop)

    async def main():
        async with client_of(shop) as client:
            first = (await ask_one(client)).json()
            added = await client.post("/catalog/add", json={"items": [{"item_id": "new", "codes": free}]})
            removed = await client.post("/catalog/remove", json={"item_ids": first["item_ids"][:1]})
            second = (await ask_one(client)).json()
            back = await client.post("/catalog/rollback", json={"version": 1})
            status = (await client.get("/catalog/status")).json()
            return first, added.json(), removed.json(), second, back.json(), status, (await ask_one(client)).json()

    async def ask_one(client):
        return await client.post("/recommend", json={"history": ["i3"], "top_k": 12})

    first, added, removed, second, back, status, third = asyncio.run(main())

    assert (added["number"], added["num_items"], added["num_added"]) == (2, 12, 1)
    assert (removed["number"], removed["num_removed"]) == (3, 1)
    assert (first["catalog_version"], second["catalog_version"], third["catalog_version"]) == (1, 3, 4)
    assert set(second["item_ids"]) == {*first["item_ids"][1:], "new"}
    assert (back["parent"], back["fingerprint"]) == (3, status["versions"][0]["fingerprint"])
    assert third["item_ids"] == first["item_ids"]
    assert (status["version"], len(status["versions"]), status["num_items"]) == (4, 4, 11)


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("/catalog/remove", {"item_ids": ["x"]}, "1 items are not in the catalog: 'x'"),
        ("/catalog/rollback", {"version": 9}, "There is no version 9"),
        ("/catalog/add", {"items": [{"item_id": "i3"}]}, "i3"),
        ("/catalog/add", {"items": [{"item_id": "new"}], "vectors": [[1.0], [1.0, 2.0]]}, "of one length"),
        ("/catalog/add", {"items": [{"item_id": f"n{n}"} for n in range(8)]}, "at most `max_ids` = 7 items, got 8"),
        ("/catalog/remove", {"item_ids": []}, "at least 1 item"),
    ],
)
def test_change_that_cannot_be_is_refused_with_the_reason(recommender, path, body, text):
    (answer,) = ask(recommender, body, path=path, max_ids=7)

    assert answer.status_code == 422
    assert text in answer.text


def test_encoder_that_cannot_be_reached_is_named_and_changes_nothing(recommender, monkeypatch):
    def add(items, *, vectors, encoder):
        raise OSError(f"no encoder in {encoder}")

    monkeypatch.setattr(recommender.catalog, "add", add)
    (answer,) = ask(recommender, {"items": [{"item_id": "new"}]}, path="/catalog/add", encoder="some/folder")

    wanted = "no encoder in some/folder Start the server with `--encoder FOLDER`, or send `vectors`."
    assert (answer.status_code, answer.json()["detail"]) == (503, wanted)


def test_folder_that_cannot_be_written_is_said_without_its_path(recommender, monkeypatch):
    def fails(*_):
        raise OSError(30, "Read-only file system", "/secret/place")

    monkeypatch.setattr(recommender.catalog, "remove", fails)
    (answer,) = ask(recommender, {"item_ids": ["i3"]}, path="/catalog/remove")

    assert (answer.status_code, answer.json()["detail"]) == (
        503, "The served folder cannot be written: Read-only file system.",
    )  # fmt: skip


def test_questions_are_answered_as_the_recommender_answers_them(recommender):
    def body_of(path, body):
        (answer,) = ask(recommender, body, path=path)
        return answer.json()

    similar = recommender.similar_items("i3", 4)
    reasons = recommender.explain(["i3", "i5"], "i7")
    told = body_of("/explain", {"history": ["i3", "i5"], "item_id": "i7"})["reasons"]

    assert body_of("/similar_items", {"item_id": "i3", "top_k": 4})["item_ids"] == [item_id for item_id, _ in similar]
    assert [(reason["item_id"], reason["shared_codes"]) for reason in told] == [
        (reason.item_id, list(reason.shared_codes)) for reason in reasons
    ]
    assert told[0]["effect"] == pytest.approx(reasons[0].effect, abs=1e-5)
    vectors = body_of("/item_vectors", {"item_ids": ["i9", "i2"]})["vectors"]
    np.testing.assert_allclose(vectors, recommender.item_vectors()[[9, 2]], rtol=1e-6)
    states = body_of("/encode_users", {"histories": [["i3"], ["i4", "i5"]]})["vectors"]
    np.testing.assert_allclose(states, recommender.encode_users([["i3"], ["i4", "i5"]]), atol=1e-6)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/similar_items", {"item_id": "x"}),
        ("/item_vectors", {"item_ids": ["i3", "x"]}),
        ("/explain", {"history": ["i3"], "item_id": "x"}),
    ],
)
def test_question_about_an_item_that_is_not_there_is_answered_by_404(recommender, path, body):
    (answer,) = ask(recommender, body, path=path)

    assert (answer.status_code, answer.json()["detail"][:3]) == (404, "'x'")


def test_times_of_a_request_reach_a_model_that_reads_them():
    model = make_sasrec(num_items=7, history_gap_buckets=16)
    model.encoder.gaps.weight.data.normal_()
    shop = Recommender(model, pa.table({"item_id": [f"i{number}" for number in range(7)]}))
    history, times = ["i1", "i2", "i3"], [0, 5_000, 90_000_000]
    bodies = [{"history": history}, {"history": history, "times": times}]
    bodies.append({"histories": [["i4"], history], "times": [[7], times]})

    without, one, two = (answer.json()["scores"] for answer in ask(shop, *bodies, window_ms=50))

    assert one == pytest.approx(shop.recommend(history, times=times).scores, abs=1e-5)
    assert two[1] == pytest.approx(one, abs=1e-5)
    assert without == pytest.approx(shop.recommend(history).scores, abs=1e-5) != one


@pytest.mark.parametrize("times", [[1], [[1, 2]], [1, 2, 3], ["1", "2"], [1.5, 2]])
def test_times_of_another_shape_are_refused(recommender, times):
    (answer,) = ask(recommender, {"history": ["i3", "i5"], "times": times})

    assert answer.status_code == 422
    assert "times" in answer.text
