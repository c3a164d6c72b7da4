"""
Saves a tiny model with what it recommends, and checks in another process that the folder recommends the same.

    saved_model.py save FOLDER          writes the model and expected.json; needs the package
    saved_model.py load FOLDER          loads it with the installed package
    saved_model.py load-remote FOLDER   loads it as remote code; fails if the package can be imported
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForSeq2SeqLM, pipeline


ITEM_IDS = [f"item-{number}" for number in range(7)]


def recommended(model) -> dict[str, list]:
    """Items and scores for three histories, one of them empty."""
    first = model.config.first_item_token
    input_ids = torch.tensor([[first + 1, first + 4, first + 6], [first, 0, 0], [0, 0, 0]])
    output = model.eval().recommend(input_ids, attention_mask=(input_ids != 0).long(), top_k=5)
    return {"items": output.item_tokens.tolist(), "scores": output.scores.tolist()}


def save(folder: Path) -> None:
    """Write a model with random weights over seven items and its answers."""
    from hf_genrec import LatteConfig, LatteForConditionalGeneration
    from hf_genrec.tokenizers.vocabulary import build_tokenizer

    torch.manual_seed(0)
    codes = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 2, 3], [1, 1, 1], [1, 3, 0], [2, 0, 2], [3, 3, 3]])
    config = LatteConfig(
        num_items=7, codebook_size=4, num_latent_tokens=2, d_model=16, d_kv=8, d_ff=32, num_heads=2, num_layers=1,
        num_decoder_layers=1,
    )  # fmt: skip
    model = LatteForConditionalGeneration(config)
    model.set_catalog(codes)
    model.save_pretrained(folder)
    build_tokenizer(ITEM_IDS, config).save_pretrained(folder)
    (folder / "expected.json").write_text(json.dumps(recommended(model)), encoding="utf-8")


def load(folder: Path, *, trust_remote_code: bool) -> None:
    """Compare what the loaded model recommends with what the saved one did."""
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    for auto_class in (AutoModel, AutoModelForSeq2SeqLM):
        model = auto_class.from_pretrained(folder, trust_remote_code=trust_remote_code)
        found = recommended(model)
        if found["items"] != expected["items"]:
            sys.exit(f"{auto_class.__name__} recommends {found['items']}, the saved model {expected['items']}.")
        torch.testing.assert_close(found["scores"], expected["scores"])
        print(f"{auto_class.__name__}: {type(model).__module__} recommends the same items.")
    recommend = pipeline("next-item-recommendation", model=str(folder), trust_remote_code=trust_remote_code)
    lists = recommend([["item-1", "item-4", "item-6"], ["item-0"], []], top_k=5, exclude_seen=False)
    found = [[entry["item_id"] for entry in answer] for answer in lists]
    first = model.config.first_item_token
    if found != [[ITEM_IDS[token - first] for token in row] for row in expected["items"]]:
        sys.exit(f"The pipeline recommends {found}, the saved model tokens {expected['items']}.")
    print(f"pipeline: {type(recommend).__module__} recommends the same items.")


def main() -> None:
    """Run the command named first on the folder named second."""
    command, folder = sys.argv[1], Path(sys.argv[2])
    if command == "save":
        save(folder)
    elif command == "load":
        import hf_genrec  # noqa: F401  (registers the classes)

        load(folder, trust_remote_code=False)
    elif command == "load-remote":
        if importlib.util.find_spec("hf_genrec") is not None:
            sys.exit("hf_genrec can be imported here, so this would prove nothing.")
        load(folder, trust_remote_code=True)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
