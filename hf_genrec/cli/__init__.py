"""`hf-genrec VERB`: one verb per stage."""
