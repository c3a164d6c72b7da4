"""Causal LMs become recommenders: semantic-ID tokens, fine-tuning, hand-over. Needs the extra `hf-genrec[llm]`."""
