"""ESM-2: sizes, alphabet, checkpoints, and its forward in three forms."""
