"""
`hf-genrec train` as a script, for `accelerate launch` and `torchrun`.

    accelerate launch --multi_gpu --num_processes 8 scripts/train.py PREPARED --ids IDS --output RUN
    torchrun --nproc_per_node 2 scripts/train.py PREPARED --ids IDS --output RUN

The latter starts processes on a CPU, too; `accelerate launch --cpu` starts one, whatever number it is given.
"""

import sys

from hf_genrec.cli.main import app


if __name__ == "__main__":
    app(["train", *sys.argv[1:]], prog_name="hf-genrec")
