"""
A process that knows neither the package nor a cache, only the address of the Hub on loopback. It imports torch and
transformers once; every program then runs in a fork of it, which saves each of them these seconds.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace


PROGRAM = """
import gc, json, os, sys, traceback
gc.disable()

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hf_genrec", "modeling"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocker())
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline
from transformers.models.t5 import modeling_t5

try:
    import hf_genrec
except ImportError:
    pass
else:
    raise SystemExit("hf_genrec could be imported")
torch.set_num_threads(1)
gc.freeze()
gc.enable()
for line in sys.stdin:
    program, words, folder = json.loads(line)
    child = os.fork()
    if child == 0:
        status = 1
        os.chdir(folder)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        sys.argv = ["-c", *words]
        try:
            exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Stranger:
    """Runs programs; `home` is where its caches are."""

    def __init__(self, home, endpoint, token):
        environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HF_HOME": str(home)}
        environment |= {"HF_ENDPOINT": endpoint, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
        )

    def run(self, program, *words):
        """What `subprocess.run` would answer: `returncode`, `stdout`, `stderr`."""
        with tempfile.TemporaryDirectory() as folder:
            self.process.stdin.write(json.dumps([program, list(map(str, words)), folder]) + "\n")
            self.process.stdin.flush()
            status = int(self.process.stdout.readline())
            texts = {name: (Path(folder) / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")}
        return SimpleNamespace(returncode=status, **texts)

    def close(self):
        self.process.kill()
        self.process.communicate()
