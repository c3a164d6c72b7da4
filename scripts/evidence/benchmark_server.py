"""
What `hf-genrec serve` stands: requests per second and their latency, changes of the catalog and SIGTERM under load.

    python scripts/evidence/benchmark_server.py RUN
    python scripts/evidence/benchmark_server.py RUN --seconds 20 --soak 600 --parts soak

Servers are started as an operator starts them; the clients are in this process, so both share the machine. A client
sends its next request when it has the answer to the last one. Histories are random items, one per request.

* `load`: 1, 8 and 64 clients, with micro-batches and without, in turns.
* `swaps`: items are removed and brought back under load. Each answer must be, item by item, that of a quiet server
  with the catalog of the version that the answer names.
* `sigterm`: a request that was sent on an accepted connection and gets no answer is lost. Clients go on until the
  server accepts no more.
* `soak`: resident memory over a long time.

Parts that are not asked for keep their figures in the output.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import torch
from rich.console import Console

from benchmark_decoding import machine
from hf_genrec.files import write_json
from server_results import server_blocks


CLIENTS = (1, 8, 64)
MODES = {"micro-batches": [], "one by one": ["--max-batch", "1"]}
PARTS = ("load", "swaps", "sigterm", "soak")
NUM_SWAPPED = 50  # items of a change


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that `hf-genrec train` wrote")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[:3], help="default: all but soak")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load (default 10)")
    parser.add_argument("--turns", type=int, default=3, help="of each load; the medians are kept (default 3)")
    parser.add_argument("--swaps", type=int, default=100, help="changes of the catalog (default 100)")
    parser.add_argument("--soak", type=float, default=600.0, help="seconds of the soak (default 600)")
    parser.add_argument("--seed", type=int, default=0, help="of the histories")
    parser.add_argument("--output", type=Path, default=Path("scripts/evidence/records/server_speed.json"))
    arguments = parser.parse_args()
    items = pq.read_table(arguments.run / "items.parquet")
    histories = random_histories(items["item_id"].to_pylist(), seed=arguments.seed)
    report = json.loads(arguments.output.read_text("utf-8")) if arguments.output.exists() else {}
    report |= {"num_items": len(items), "model": json.loads((arguments.run / "config.json").read_text())["model_type"]}
    parts: dict[str, Callable[[], Any]] = {
        "load": lambda: measure_load(arguments, histories),
        "swaps": lambda: measure_swaps(arguments, histories),
        "sigterm": lambda: measure_sigterm(arguments, histories),
        "soak": lambda: measure_soak(arguments, histories),
    }
    for name in arguments.parts:
        report[name] = parts[name]() | {"machine": machine(torch.device("cpu"))}
        write_json(report, arguments.output)
    Console().print("\n\n".join(server_blocks(report)))


def random_histories(item_ids: list[str], *, seed: int, number: int = 500) -> list[list[str]]:
    random = np.random.default_rng(seed)
    return [random.choice(item_ids, random.integers(1, 20), replace=False).tolist() for _ in range(number)]


@contextmanager
def server_of(run: Path, *words: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of a server that is ready, and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hf_genrec.cli.main", "serve", str(run), "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen([*command, *words])
    address = f"http://127.0.0.1:{port}"
    try:
        while not is_ready(address):
            if process.poll() is not None:
                raise SystemExit(f"The server did not start, exit code {process.returncode}.")
            time.sleep(0.2)
        yield address, process
    finally:
        process.terminate()
        process.wait(30)


def is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/ready").status_code == 200
    except httpx.TransportError:
        return False


# --- the clients -----------------------------------------------------------------------------------------------------

Check = Callable[[int, dict[str, Any]], None]


async def run_clients(
    address: str,
    histories: list[list[str]],
    *,
    clients: int,
    seconds: float,
    check: Check | None = None,
    beside: Callable[[httpx.AsyncClient], Awaitable[None]] | None = None,
) -> dict[str, Any]:
    """
    Clients that ask again and again: milliseconds of each answer, and how many had which status or error.

    Args: `check` is called with the number of the history and the answer; `beside` runs at the same time, and the
        clients stop when both it and the seconds are over.
    """
    milliseconds: list[float] = []
    outcomes: Counter[str] = Counter()
    start = time.perf_counter()
    ended = asyncio.Event()

    async def client(number: int, session: httpx.AsyncClient) -> None:
        place = number
        while not ended.is_set() or time.perf_counter() - start < seconds:
            place = (place + clients) % len(histories)
            sent = time.perf_counter()
            try:
                answer = await session.post("/recommend", json={"history": histories[place], "top_k": 10})
            except httpx.ConnectError:
                outcomes["not accepted"] += 1
                return
            except httpx.TransportError as error:
                outcomes[f"lost: {type(error).__name__}"] += 1
                return
            milliseconds.append(1000 * (time.perf_counter() - sent))
            outcomes[str(answer.status_code)] += 1
            if check is not None and answer.status_code == 200:
                check(place, answer.json())

    async with AsyncExitStack() as stack:
        # a session for each: looking for a free one of many connections takes longer than the request
        made = [httpx.AsyncClient(base_url=address, timeout=60, verify=False) for _ in range(clients + 1)]
        sessions = [await stack.enter_async_context(session) for session in made]
        start = time.perf_counter()
        tasks = [asyncio.create_task(client(number, sessions[number])) for number in range(clients)]
        if beside is not None:
            await beside(sessions[-1])
        ended.set()
        await asyncio.gather(*tasks)
    return {"milliseconds": milliseconds, "seconds": time.perf_counter() - start, "outcomes": dict(outcomes)}


def figures_of(found: dict[str, Any]) -> dict[str, Any]:
    """Requests per second, and the latency that half, 95 and 99 % of them stay below."""
    quantiles = np.percentile(found["milliseconds"], [50, 95, 99])
    figures = {"requests_per_second": len(found["milliseconds"]) / found["seconds"]}
    figures |= dict(zip(("p50_ms", "p95_ms", "p99_ms"), quantiles.tolist(), strict=True))
    return {name: round(value, 2) for name, value in figures.items()} | {"outcomes": found["outcomes"]}


# --- the parts -------------------------------------------------------------------------------------------------------


def measure_load(arguments: argparse.Namespace, histories: list[list[str]]) -> dict[str, Any]:
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with server_of(arguments.run) as (together, _), server_of(arguments.run, *MODES["one by one"]) as (alone, _):
        servers = dict(zip(MODES, (together, alone), strict=True))
        for address in servers.values():
            asyncio.run(run_clients(address, histories, clients=8, seconds=arguments.seconds / 5))
        for _ in range(arguments.turns):
            for clients in CLIENTS:
                for mode, address in servers.items():
                    before = batches_of(address)
                    found = figures_of(
                        asyncio.run(run_clients(address, histories, clients=clients, seconds=arguments.seconds))
                    )
                    users, batches = (after - old for after, old in zip(batches_of(address), before, strict=True))
                    found["users_per_batch"] = round(users / max(1, batches), 2)
                    rows.setdefault((mode, clients), []).append(found)
    cells = [{"mode": mode, "clients": clients} | middle_of(turns) for (mode, clients), turns in rows.items()]
    return {"cells": cells, "seconds": arguments.seconds, "turns": arguments.turns}


def middle_of(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of some turns, and what all their requests ended with."""
    outcomes: Counter[str] = sum((Counter(turn.pop("outcomes")) for turn in turns), Counter())
    middle = {name: round(float(np.median([turn[name] for turn in turns])), 2) for name in turns[0]}
    return middle | {"outcomes": dict(outcomes)}


def batches_of(address: str) -> tuple[float, float]:
    """Users and batches that a server computed so far."""
    page = httpx.get(f"{address}/metrics").text
    found = (re.search(rf"^hf_genrec_batch_users_{name} (\S+)$", page, re.MULTILINE) for name in ("sum", "count"))
    users, batches = (float(match[1]) for match in found if match)
    return users, batches


def measure_swaps(arguments: argparse.Namespace, histories: list[list[str]]) -> dict[str, Any]:
    histories = histories[:100]
    with tempfile.TemporaryDirectory() as folder:  # a server may write its catalog beside the model
        run = shutil.copytree(arguments.run, Path(folder) / "run", ignore=shutil.ignore_patterns("checkpoints"))
        with server_of(run) as (address, _):
            return asyncio.run(swapped(address, histories, num_swaps=arguments.swaps, seconds=arguments.seconds))


async def swapped(address: str, histories: list[list[str]], *, num_swaps: int, seconds: float) -> dict[str, Any]:
    """Removals and rollbacks by turns, while 8 clients ask."""
    async with httpx.AsyncClient(base_url=address, timeout=60) as session:
        number = (await session.get("/catalog/status")).raise_for_status().json()["version"]
        whole = await lists_of(session, histories)
        removed = sorted({item_id for items in whole for item_id in items[:2]})[:NUM_SWAPPED]
        change = (await session.post("/catalog/remove", json={"item_ids": removed})).raise_for_status().json()
        small = await lists_of(session, histories)
        back = (await session.post("/catalog/rollback", json={"version": number})).raise_for_status().json()
    wanted = {number: whole, change["number"]: small, back["number"]: whole}
    counts: Counter[str] = Counter()
    pauses: list[float] = []

    def check(place: int, answer: dict[str, Any]) -> None:
        counts["answers"] += 1
        counts["wrong"] += answer["item_ids"] != wanted[answer["catalog_version"]][place]

    async def beside(session: httpx.AsyncClient) -> None:
        for turn in range(num_swaps):
            body = {"version": number} if turn % 2 else {"item_ids": removed}
            latest = max(wanted)
            wanted[latest + 1] = whole if turn % 2 else small  # known before any answer can name it
            start = time.perf_counter()
            changed = await session.post("/catalog/rollback" if turn % 2 else "/catalog/remove", json=body)
            pauses.append(1000 * (time.perf_counter() - start))
            counts["failed changes"] += changed.status_code != 200 or changed.json()["number"] != latest + 1
            await asyncio.sleep(seconds / num_swaps)

    found = await run_clients(address, histories, clients=8, seconds=0, check=check, beside=beside)
    swap_ms = dict(zip(("p50", "p99"), np.percentile(pauses, [50, 99]).round(1).tolist(), strict=True))
    failed = sum(count for outcome, count in found["outcomes"].items() if outcome != "200")
    return {"swaps": num_swaps, "items": len(removed), "failed": failed, "swap_ms": swap_ms} | dict(counts)


async def lists_of(session: httpx.AsyncClient, histories: list[list[str]]) -> list[list[str]]:
    answers = [await session.post("/recommend", json={"history": history, "top_k": 10}) for history in histories]
    return [answer.raise_for_status().json()["item_ids"] for answer in answers]


def measure_sigterm(arguments: argparse.Namespace, histories: list[list[str]]) -> dict[str, Any]:
    with server_of(arguments.run) as (address, process):

        async def beside(session: httpx.AsyncClient) -> None:
            await asyncio.sleep(2)
            process.send_signal(signal.SIGTERM)

        found = asyncio.run(run_clients(address, histories, clients=CLIENTS[-1], seconds=3600, beside=beside))
        code = process.wait(30)
    lost = sum(count for outcome, count in found["outcomes"].items() if outcome.startswith("lost"))
    answered = {"answered": found["outcomes"].get("200", 0), "lost": lost, "outcomes": found["outcomes"]}
    return {"clients": CLIENTS[-1], "exit_code": code} | answered


def measure_soak(arguments: argparse.Namespace, histories: list[list[str]]) -> dict[str, Any]:
    with server_of(arguments.run) as (address, process):
        samples: list[tuple[float, float]] = []

        async def beside(session: httpx.AsyncClient) -> None:
            start = time.perf_counter()
            while (passed := time.perf_counter() - start) < arguments.soak:
                samples.append((round(passed), round(resident_mb(process.pid), 1)))
                await asyncio.sleep(min(10, arguments.soak / 20))

        found = asyncio.run(run_clients(address, histories, clients=8, seconds=arguments.soak, beside=beside))
    after = len(samples) // 10  # what it takes to warm up
    seconds, sizes = np.array(samples[after:]).T
    return {
        "seconds": arguments.soak,
        "requests": len(found["milliseconds"]),
        "outcomes": found["outcomes"],
        "rss_mb": {"first": sizes[0], "last": sizes[-1], "most": sizes.max()},
        "mb_per_hour": round(3600 * float(np.polyfit(seconds, sizes, 1)[0]), 1),
    }


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
