"""What every other package may use: errors, atomic files, digests, settings, words."""
