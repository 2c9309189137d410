"""FASTA and what is in it."""
