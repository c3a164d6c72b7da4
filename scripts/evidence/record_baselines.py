"""
A record of the baselines of a data set alone, with seen items allowed and with seen items excluded.

    python scripts/evidence/record_baselines.py data/beauty --dataset "Amazon 2014 Beauty" --name beauty

Records of runs repeat the baselines of their data; older ones have fewer of them, and one column only. The settings of
the baselines are chosen on the validation split for each column.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.evaluation.baselines import Popularity
from hf_genrec.evaluation.evaluate import EvaluationSettings, evaluate
from hf_genrec.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="prepared folder")
    parser.add_argument("--dataset", required=True, help="name of the data set, as in the records of its runs")
    parser.add_argument("--name", required=True, help="name of the file")
    parser.add_argument("--records", type=Path, default=Path("scripts/evidence/records/baselines"), help="folder")
    arguments = parser.parse_args()
    data = PreparedDataset.load(arguments.data)
    record = evaluate(Popularity.fit(data), data, EvaluationSettings())
    content = {name: value for name, value in record.items() if name != "model"}
    content["run"] = {"name": arguments.name, "dataset": arguments.dataset}
    write_json(content, arguments.records / f"{arguments.name}.json")
    for name, values in record["baselines"].items():
        excluded = values["seen_excluded"]
        print(f"{name}: ndcg@10 {values['ndcg@10']:.4f}, seen items excluded {excluded['ndcg@10']:.4f}")


if __name__ == "__main__":
    main()
