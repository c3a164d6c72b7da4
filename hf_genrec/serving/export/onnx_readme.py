"""
The README of a folder with exported graphs.
"""

README = """# A recommender for onnxruntime

`onnx_config.json` has the settings, `items.parquet` the item ids: item row `n` is its row `n`. Histories are item
rows, oldest first, the latest `max_history_length` of them, padded on the right with -1. In Python
`hf_genrec.serving.export.onnx_recommender.OnnxRecommender(folder)` does all of this without torch.

## `model.onnx`, where there is one

| input, output | shape | what it is |
|---|---|---|
| `history` | users, items | item rows, int64 |
| `excluded` | users, any | item rows that may not be listed, padded with -1 |
| `items`, `scores` | users, `top_k` | item rows, best first, and log-probabilities; `-inf` where there are fewer |

Beside an encoder and a decoder it is the dense head alone.

## `encoder.onnx` and `decoder.onnx`, where there are such

The model writes semantic IDs code by code. The encoder runs once per user, the decoder once per step for all beams:

| graph | input, output | shape | what it is |
|---|---|---|---|
| encoder | `history` | users, items | as above |
| | `keys`, `values`, `mask`, `state` | users, ... | what the decoder reads of it |
| | `dense` | users, all items | log-probabilities of the dense head, where there is one |
| decoder | `tokens` | users, beams | the token that each beam ends with |
| | `parents` | users, beams | the beam of the step before that it continues |
| | `cache` | users, beams before, steps before, `cache_width` | `new_cache` of the step before |
| | `keys`, `values`, `mask`, `state` | users, ... | from the encoder |
| | `logits` | users, beams, vocabulary | of the next token |

```text
keys, values, mask, state = encoder(history)
tokens, parents, cache = decoder_start_token_id, 0, zeros(users, 1, 0, cache_width)      # one beam
nodes, scores = root (0), 0
for each level:                               # before it a step for the latent, if num_latent_tokens > 0
    logits, cache = decoder(tokens, parents, cache, keys, values, mask, state)
    children of each beam's node n: first_child_LEVEL[n] up to first_child_LEVEL[n + 1]
    their tokens: first_code_token + LEVEL * codebook_size + codes_LEVEL[child]
    log-probabilities: log_softmax over the logits of these tokens    # normalization = "catalog"; else the logits
    scores of the beam + log-probabilities; drop children without an item that may be listed
    keep the num_beams best of each user: parents, tokens, nodes = child, scores
items of leaf n: items[first_item_LAST[n] : first_item_LAST[n + 1]], all with the score of the leaf
```

The arrays are in `trie.npz`. The latent's tokens are `first_latent_token` and the `num_latent_tokens - 1` after it,
all of them allowed; it leaves a beam at the root, and an id that several latents reach has the best of their scores
(`latent_aggregation`). A list that is too short is searched again with twice the beams. With `dense_weight` above 0
the candidates are the items that the beams found and the `num_beams` best of `dense`; the latter are scored by the
decoder along their own codes (`item_codes`). An item's score is that of its codes plus `dense_weight` times `dense`.
"""
