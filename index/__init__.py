"""What exists and how to find it: files, catalogue, change feed, job queue, embeddings, similarity."""
