"""Checkpoints as people have them: which files they are made of, and their tensors; nothing in them is executed."""
