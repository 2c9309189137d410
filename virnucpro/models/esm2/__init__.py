"""ESM-2: sizes, alphabet, checkpoints, and its forward in a readable and two faster forms."""
