"""BERT as MosaicML built it (DNABERT-2, DNABERT-S): ALiBi, a gated feed-forward, norms after the sums."""
