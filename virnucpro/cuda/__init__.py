"""Which GPUs there are, whose they are, and what they can run."""
