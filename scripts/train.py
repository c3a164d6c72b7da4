"""
`hf-genrec train` as a script, for `accelerate launch` and `torchrun`.

    accelerate launch scripts/train.py PREPARED --ids IDS --output RUN
"""

import sys

from hf_genrec.cli.main import app


if __name__ == "__main__":
    app(["train", *sys.argv[1:]], prog_name="hf-genrec")
