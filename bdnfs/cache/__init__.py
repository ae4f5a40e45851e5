"""The node cache: an LMDB index, one sparse file per file version, trees of hardlinks."""
