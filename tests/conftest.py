"""Fixtures of the whole suite. Tests run offline, on CPU, and write only below pytest's temporary folders."""

import atexit
import gc
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest


_CACHE = tempfile.mkdtemp(prefix="hf_genrec_tests_")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)

# Read by the libraries when they are imported, hence before any test module and at the top level of this file.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = os.path.join(_CACHE, "datasets")
os.environ["HF_MODULES_CACHE"] = os.path.join(_CACHE, "modules")
os.environ["HF_METRICS_CACHE"] = os.path.join(_CACHE, "metrics")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: on a busy machine, threads wait for each other

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "scripts" / "evidence"))  # its files are programs that import each other


os.fsync = lambda descriptor: None  # no test cuts the power, and a busy disk needs 10 ms each time
gc.disable()  # until all modules are imported: none of what they make is garbage


def pytest_collection_finish():
    """Garbage is looked for seldom, and not among the half million objects of the libraries: a fifth of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    gc.enable()
    _make_once()


def _make_once():
    """The tree of commands and the code of a card's template: hundreds of calls make the same ones, in 50 ms each."""
    import jinja2
    import typer.testing

    typer.testing._get_command = cache(typer.testing._get_command)
    jinja2.Environment.compile = cache(jinja2.Environment.compile)


# What these tests share is made once for all of them, such as a process without the package.
TOGETHER = {
    **dict.fromkeys(["tests/hub/test_cards.py", "tests/hub/test_hub_protocol.py"], "stranger"),
    **dict.fromkeys(["tests/modeling/test_pipeline.py", "tests/modeling/test_remote_code.py"], "stranger"),
    **dict.fromkeys(["tests/serving/test_onnx.py", "tests/test_readme.py"], "export"),  # which takes seconds to import
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Tests of one file, and those of files that share something, run in one process."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return "tests/cli" if file.startswith("tests/cli/") else TOGETHER.get(file, file)

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="module")
def load_script() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a script by its name; it is forgotten after the module of tests."""
    names = []

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / "evidence" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        names.append(name)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in names:
        sys.modules.pop(name, None)  # a script may have been loaded twice


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout; tests that need it are skipped where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no folder of real data beside the checkout")
    return folder


@pytest.fixture(autouse=True, scope="module")
def restored_logging():
    """The command line sets up logging for a whole process; the next module finds it as it was."""
    from transformers.utils import logging as transformers_logging

    library, verbosity = logging.getLogger("hf_genrec"), transformers_logging.get_verbosity()
    level, handlers = library.level, library.handlers
    yield
    library.setLevel(level)
    library.handlers = handlers
    transformers_logging.set_verbosity(verbosity)
    transformers_logging.enable_progress_bar()


@pytest.fixture(scope="session")
def make_prepared(tmp_path_factory):
    """A function that turns `{user: [item, ...]}` into a prepared data set whose catalog is in alphabetical order."""

    def make(sequences: dict[str, list[str]], *, protocol: str = "custom"):
        from hf_genrec.data.prepare import prepare

        folder = tmp_path_factory.mktemp("log")
        lines = [f"{user}\t{' '.join(items)}\n" for user, items in sequences.items()]
        (folder / "sequences.tsv").write_text("".join(lines), encoding="utf-8")
        item_ids = sorted({item for items in sequences.values() for item in items})
        lines = [json.dumps({"item_id": item, "title": f"the {item}"}) + "\n" for item in item_ids]
        (folder / "items.jsonl").write_text("".join(lines), encoding="utf-8")
        return prepare(
            folder / "prepared",
            sequences=folder / "sequences.tsv",
            items=folder / "items.jsonl",
            protocol=protocol,
        )

    return make


@pytest.fixture(scope="session")
def hub_on_loopback():
    """A small Hub that runs as long as the tests do."""
    import hub_server

    hub, server = hub_server.start()
    yield hub
    server.should_exit = True


@pytest.fixture(scope="session")
def stranger(hub_on_loopback, tmp_path_factory):
    """A process without the package, see `stranger.py`; `stranger.run(program, *words)` runs a program in a fork."""
    import hub_server
    from stranger import Stranger

    process = Stranger(tmp_path_factory.mktemp("home"), hub_on_loopback.url, hub_server.TOKEN)
    yield process
    process.close()


@pytest.fixture
def hub(hub_on_loopback, monkeypatch, tmp_path):
    """The Hub on loopback, emptied: this process talks to it as the user `me`, with an empty cache."""
    from huggingface_hub import constants
    from transformers.utils import hub as transformers_hub

    import hub_server

    hub_on_loopback.clear()
    monkeypatch.setattr(transformers_hub, "_hf_api", None)  # its client keeps the address of its first use
    values = {
        "ENDPOINT": hub_on_loopback.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub_on_loopback.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))  # between two attempts
    return hub_on_loopback
