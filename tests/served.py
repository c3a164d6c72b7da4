"""The HTTP server in a forked process, as a client finds it: libraries are imported, so it is there at once."""

import contextlib
import os
import signal
import socket
import time

import httpx

from hf_genrec.serving.server.app import serve
from hf_genrec.serving.server.settings import ServerSettings


@contextlib.contextmanager
def served(recommender, **settings):
    """The address of a server and the number of its process, which is ended if the test has not done so."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pid = os.fork()
    if pid == 0:
        serve(lambda: recommender, ServerSettings(port=port, **settings))
        os._exit(1)
    address = f"http://127.0.0.1:{port}"
    try:
        assert_soon(lambda: accepts(address) and httpx.get(f"{address}/ready").status_code == 200)
        yield address, pid
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def accepts(address):
    """Whether somebody listens."""
    try:
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))).close()
    except OSError:
        return False
    return True


def assert_soon(condition, *, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
