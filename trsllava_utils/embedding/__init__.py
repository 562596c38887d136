"""Notebook 02: texts go in, unit vectors come out, kept on disk."""

from trsllava_utils.embedding.encoders import MINILM, Encoder, kept_encoder, load_encoder
from trsllava_utils.embedding.vectors import Embeddings, embed_corpus, embed_texts, unit_vectors
from trsllava_utils.embedding.clip import ClipEncoder
