"""
`hf-genrec prepare` as the program that `spark-submit` starts:

    spark-submit --master yarn scripts/prepare.py --engine spark --interactions logs.events --items items.jsonl \\
        --output data --k-core 5

The master, the memory and the packages of the executors are options of `spark-submit`.
"""

import sys

from hf_genrec.cli.main import main


if __name__ == "__main__":
    sys.argv.insert(1, "prepare")
    main()
