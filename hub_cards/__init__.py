"""Card templates (`*.md`) and result records; the values are computed in `hf_genrec.hub.cards`."""
