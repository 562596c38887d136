"""Servers that speak the OpenAI protocol: captions and embeddings."""
