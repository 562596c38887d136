"""Notebook 02: texts go in, unit vectors come out, kept on disk."""

from trsllava_utils.parameters import MINILM
from trsllava_utils.embedding.encoders import load_encoder, kept_encoder, Encoder
from trsllava_utils.embedding.vectors import embed_corpus, unit_vectors, Embeddings
from trsllava_utils.embedding.clip import ClipEncoder
