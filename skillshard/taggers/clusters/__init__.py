"""Skills as clusters of embeddings."""
