# The results page but for speeds and beam sweeps: prepared data, ids, all runs of the tables, the diagnosis of trained trees, the
# experiment on an invented world, the plots, and last the page.
#
#     make -f scripts/evidence/evidence.mk DATA=folder WORK=folder JOBS=2
#
# DATA holds `amazon2014_beauty/` and `amazon2018_scientific/`, each with `sequences.tsv` (user, tab, items), `items.jsonl`
# (item_id, title, more fields); the former has `sids/` with ids of other projects (JSON, item to codes). What exists in
# WORK is not made again, a run whose record exists is skipped: start it again until the table is full. What fails does
# not keep the rest and the page from being made; make then ends with an error. Speeds are measured by scripts of their own.

WORK ?= work
JOBS ?= 1
BIN ?= $(dir $(shell command -v hf-genrec))
CARDS ?= scripts/evidence/records
RECORDS ?= $(CARDS)/results
ENCODER ?= sentence-transformers/all-MiniLM-L6-v2

PYTHON := $(abspath $(BIN))/python
GENREC := $(abspath $(BIN))/hf-genrec
THIS := $(lastword $(MAKEFILE_LIST))
BEAUTY := $(DATA)/amazon2014_beauty
SCIENTIFIC := $(DATA)/amazon2018_scientific
IMPORTED := beauty_letter beauty_opq4 beauty_rkmeans_native beauty_rkmeans_append beauty_rkmeans_zcr beauty_screc
EVIDENCE_IDS := $(filter-out beauty_screc,$(IMPORTED)) beauty_minilm beauty_minilm_append
LENGTH_IDS := beauty_minilm_opq4 beauty_minilm_opq8 beauty_minilm_opq16 beauty_minilm_opq64
OWN := beauty_minilm beauty_minilm_append beauty_opq32 $(LENGTH_IDS) scientific_rkmeans scientific_opq32
IDS := $(addprefix $(WORK)/,$(IMPORTED) $(OWN))
TABLES := beauty_evidence beauty_items scientific_latents beauty_parallel beauty_lengths acerec_ablation
TREE := amazon_2014_beauty

.NOTPARALLEL:
.PHONY: evidence ids tables $(TABLES) trees synthetic page
evidence:
	@status=0; \
	$(MAKE) -k -f $(THIS) ids tables trees synthetic || status=1; \
	$(MAKE) -f $(THIS) page || status=1; \
	exit $$status

ids: $(IDS)

tables: $(TABLES)

beauty_evidence: $(addprefix $(WORK)/,$(EVIDENCE_IDS))
beauty_items: $(WORK)/beauty_opq32 $(WORK)/beauty_embeddings
scientific_latents: $(WORK)/scientific_rkmeans
beauty_lengths: $(addprefix $(WORK)/,beauty_opq32 $(LENGTH_IDS))
beauty_parallel: $(WORK)/beauty_screc $(WORK)/beauty_opq32
acerec_ablation: $(WORK)/scientific_opq32
$(TABLES):
	$(PYTHON) scripts/evidence/run_table.py scripts/evidence/tables/$@.json --work $(WORK) --jobs $(JOBS) --records $(RECORDS)

# Three runs of the first two tables, which therefore come before.
trees: $(CARDS)/trees/$(TREE).json

$(CARDS)/trees/$(TREE).json:
	cd $(WORK) && $(GENREC) diagnose PSID=runs/beauty_psid_own_seed1 Latte=runs/beauty_latte_own_seed1 beauty --reference SASRec=runs/beauty_sasrec_seed1 --users 256 --pairs 256 --output $(TREE).json --plot $(TREE).png
	mkdir -p $(@D)
	cp $(WORK)/$(TREE).png $(@D)/
	cp $(WORK)/$(TREE).json $(@D)/

# Skips the runs that its record has.
synthetic:
	$(PYTHON) scripts/evidence/synthetic_siblings.py --output $(CARDS)/synthetic_siblings.json --plot $(CARDS)/curves/synthetic_siblings.png

page:
	$(PYTHON) scripts/evidence/plot_curves.py --records $(RECORDS) --output $(CARDS)/curves
	$(PYTHON) scripts/evidence/plot_long_ids.py --records $(RECORDS) --output $(CARDS)/curves
	$(PYTHON) scripts/evidence/write_results.py --records $(CARDS)

$(WORK)/beauty:
	$(GENREC) prepare --sequences $(BEAUTY)/sequences.tsv --items $(BEAUTY)/items.jsonl --protocol amazon2014 --category Beauty --output $@

$(WORK)/scientific:
	$(GENREC) prepare --sequences $(SCIENTIFIC)/sequences.tsv --items $(SCIENTIFIC)/items.jsonl --protocol amazon2018 --output $@

$(WORK)/%_embeddings: | $(WORK)/%
	$(GENREC) embed $(WORK)/$* --model $(ENCODER) --output $@

# Imported ids have no centroids: shared ones get a code appended or are kept, and the record says which.
$(WORK)/beauty_letter: SOURCE := letter_release.json --policy append
$(WORK)/beauty_opq4: SOURCE := opq4_st5_dadrec.json --policy append
$(WORK)/beauty_rkmeans_native: SOURCE := collisiongenrec_rkmeans_native.json --policy keep
$(WORK)/beauty_rkmeans_append: SOURCE := collisiongenrec_rkmeans_native.json --policy append
$(WORK)/beauty_rkmeans_zcr: SOURCE := collisiongenrec_rkmeans_zcr.json --policy keep
$(WORK)/beauty_screc: SOURCE := rpg_opq32_screc.json --policy keep --codebook-size 256
$(addprefix $(WORK)/,$(IMPORTED)): | $(WORK)/beauty
	$(GENREC) tokenize $(WORK)/beauty --ids $(BEAUTY)/sids/$(SOURCE) --output $@

# Our own: residual k-means, three levels of 256 codes; optimized product quantization, 32 levels of 256 or as many as named.
$(WORK)/beauty_minilm: | $(WORK)/beauty_embeddings
	$(GENREC) tokenize $(WORK)/beauty --embeddings $(WORK)/beauty_embeddings --policy widen --output $@

$(WORK)/beauty_minilm_append: | $(WORK)/beauty_embeddings
	$(GENREC) tokenize $(WORK)/beauty --embeddings $(WORK)/beauty_embeddings --policy append --output $@

$(WORK)/scientific_rkmeans: | $(WORK)/scientific_embeddings
	$(GENREC) tokenize $(WORK)/scientific --embeddings $(WORK)/scientific_embeddings --policy widen --output $@

$(WORK)/beauty_opq32: | $(WORK)/beauty_embeddings
	$(GENREC) tokenize $(WORK)/beauty --embeddings $(WORK)/beauty_embeddings --quantizer opq --levels 32 --output $@

$(WORK)/beauty_minilm_opq%: | $(WORK)/beauty_embeddings
	$(GENREC) tokenize $(WORK)/beauty --embeddings $(WORK)/beauty_embeddings --quantizer opq --levels $* --policy keep --output $@

$(WORK)/scientific_opq32: | $(WORK)/scientific_embeddings
	$(GENREC) tokenize $(WORK)/scientific --embeddings $(WORK)/scientific_embeddings --quantizer opq --levels 32 --output $@
