"""Remote code: the files uploaded beside every checkpoint. Import it as `hf_genrec.modeling`."""
