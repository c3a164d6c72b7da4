"""
Item texts of a prepared folder to vectors on the machines of a Ray cluster.

    pip install "ray[data]" "hf-genrec[embeddings]"
    python scripts/embed_with_ray.py data --model sentence-transformers/all-MiniLM-L6-v2 --workers 8 --gpus 1
    hf-genrec embed data --matrix vectors.npy --output embeddings

An example: it is not part of the tests, and was not run on a cluster. One machine needs no Ray: `hf-genrec embed
--num-processes`. `tokenize` keeps the quantizer, but not which encoder made a ready matrix: items that come later need
`vectors=`.
"""

from __future__ import annotations

import argparse

import numpy as np
import ray

from hf_genrec import PreparedDataset


class Encoder:
    """A model, loaded once by each worker."""

    def __init__(self, name: str, batch_size: int) -> None:
        from sentence_transformers import SentenceTransformer

        self.model, self.batch_size = SentenceTransformer(name), batch_size

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        vectors = self.model.encode(list(rows["text"]), batch_size=self.batch_size, show_progress_bar=False)
        return {"row": rows["row"], "vector": vectors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="prepared folder")
    parser.add_argument("--model", required=True, help="sentence-transformers model")
    parser.add_argument("--output", default="vectors.npy", help="one row per item, in the order of the items")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="of each worker")
    parser.add_argument("--batch-size", type=int, default=32, help="texts per forward pass")
    options = parser.parse_args()
    items = PreparedDataset.load(options.data).items
    texts = items.select(["text"]).append_column("row", [np.arange(len(items))])
    encoded = ray.data.from_arrow(texts).map_batches(
        Encoder,
        fn_constructor_args=(options.model, options.batch_size),
        concurrency=options.workers,
        num_gpus=options.gpus,
        batch_size=2048,
    )
    matrix = None
    for batch in encoded.iter_batches(batch_size=8192, batch_format="numpy"):  # in whatever order they come
        if matrix is None:
            shape = (len(items), batch["vector"].shape[1])
            matrix = np.lib.format.open_memmap(options.output, mode="w+", dtype=np.float32, shape=shape)
        matrix[batch["row"]] = batch["vector"]
    if matrix is not None:
        matrix.flush()


if __name__ == "__main__":
    main()
