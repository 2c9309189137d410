"""Files that carry embeddings between steps and to users."""
