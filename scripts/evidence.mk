# The table of evidence: prepared data, ids and all runs of two tables, then the results page.
#
#     make -f scripts/evidence.mk DATA=folder WORK=folder JOBS=2
#
# DATA holds `amazon2014_beauty/` and `amazon2018_scientific/`, each with `sequences.tsv` (user, tab, items), `items.jsonl`
# (item_id, title, more fields); the former has `sids/` with ids of other projects (JSON, item to codes). What exists in
# WORK is not made again, a run whose record exists is skipped: start it again until the table is full.

WORK ?= work
JOBS ?= 1
BIN ?= $(dir $(shell command -v hf-genrec))
RECORDS ?= hub_cards/results
ENCODER ?= sentence-transformers/all-MiniLM-L6-v2

GENREC := $(BIN)/hf-genrec
BEAUTY := $(DATA)/amazon2014_beauty
SCIENTIFIC := $(DATA)/amazon2018_scientific
IMPORTED := beauty_letter beauty_opq4 beauty_rkmeans_native beauty_rkmeans_append beauty_rkmeans_zcr
IDS := $(addprefix $(WORK)/,$(IMPORTED) beauty_minilm beauty_minilm_append scientific_rkmeans)

.PHONY: evidence ids
evidence: ids
	$(BIN)/python scripts/run_table.py scripts/tables/beauty_evidence.json --work $(WORK) --jobs $(JOBS) --records $(RECORDS)
	$(BIN)/python scripts/run_table.py scripts/tables/scientific_latents.json --work $(WORK) --jobs $(JOBS) --records $(RECORDS)
	$(BIN)/python scripts/write_results.py

ids: $(IDS)

$(WORK)/beauty:
	$(GENREC) prepare --sequences $(BEAUTY)/sequences.tsv --items $(BEAUTY)/items.jsonl --protocol amazon2014 --category Beauty --output $@

$(WORK)/scientific:
	$(GENREC) prepare --sequences $(SCIENTIFIC)/sequences.tsv --items $(SCIENTIFIC)/items.jsonl --protocol amazon2018 --output $@

$(WORK)/%_embeddings: | $(WORK)/%
	$(GENREC) embed $(WORK)/$* --model $(ENCODER) --output $@

# Imported ids have no centroids: shared ones get a code appended or are kept, and the record says which.
$(WORK)/beauty_letter: SOURCE := letter_release.json --policy keep
$(WORK)/beauty_opq4: SOURCE := opq4_st5_dadrec.json --policy keep
$(WORK)/beauty_rkmeans_native: SOURCE := collisiongenrec_rkmeans_native.json --policy keep
$(WORK)/beauty_rkmeans_append: SOURCE := collisiongenrec_rkmeans_native.json --policy append
$(WORK)/beauty_rkmeans_zcr: SOURCE := collisiongenrec_rkmeans_zcr.json --policy keep
$(addprefix $(WORK)/,$(IMPORTED)): | $(WORK)/beauty
	$(GENREC) tokenize $(WORK)/beauty --ids $(BEAUTY)/sids/$(SOURCE) --output $@

# Our own: residual k-means, three levels of 256 codes.
$(WORK)/beauty_minilm: | $(WORK)/beauty_embeddings
	$(GENREC) tokenize $(WORK)/beauty --embeddings $(WORK)/beauty_embeddings --policy widen --output $@

$(WORK)/beauty_minilm_append: | $(WORK)/beauty_embeddings
	$(GENREC) tokenize $(WORK)/beauty --embeddings $(WORK)/beauty_embeddings --policy append --output $@

$(WORK)/scientific_rkmeans: | $(WORK)/scientific_embeddings
	$(GENREC) tokenize $(WORK)/scientific --embeddings $(WORK)/scientific_embeddings --policy widen --output $@
