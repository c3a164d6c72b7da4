"""SASRec: a row of a table for each item, GPT-2 blocks over the history, and a softmax over the catalog."""

from .configuration_sasrec import SASRecConfig
from .genrec_item_rows import ItemRowsModel


class SASRecForItemGeneration(ItemRowsModel):
    """
    Item tokens in, the next item out, without semantic IDs: the baseline for models that have them.

    One table serves as input and output: the logit of an item is the inner product of its row and the state behind
    the history. The loss is the cross-entropy over the whole catalog.

    Args:
        config ([`SASRecConfig`]): Sizes, token layout and options.

    Source: Kang and McAuley 2018 (https://arxiv.org/abs/1808.09781); with the full cross-entropy instead of one
    negative item it ranks far better, see Klenitskiy and Vasilev 2023 (https://arxiv.org/abs/2309.07602).

    Example:

    ```python
    >>> import torch
    >>> config = SASRecConfig(num_items=3, d_model=8)
    >>> model = SASRecForItemGeneration(config).eval()
    >>> history = torch.tensor([[config.first_item_token, config.first_item_token + 2]])
    >>> model.score_items(history).exp().sum().round(decimals=4).item()
    1.0
    >>> sorted((model.recommend(history, top_k=3).item_tokens - config.first_item_token)[0].tolist())
    [0, 1, 2]

    ```
    """

    config: SASRecConfig
    config_class = SASRecConfig
    _auto_class = "AutoModel"  # saving takes the code along


__all__ = ["SASRecForItemGeneration"]
