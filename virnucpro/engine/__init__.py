"""From proteins to embeddings on the devices of one job."""
