"""ESM-2 on packed sequences."""
