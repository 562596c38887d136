"""Training-free, text-to-text retrieval of remote-sensing images. One module a notebook; see
README.md."""

__version__ = "0.1.0"
