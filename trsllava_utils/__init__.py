"""Training-free, text-to-text retrieval of remote-sensing images: one folder per notebook.

Imports run one way, down this list: artefacts; storage, parameters; cluster, openai_api;
``datasets`` (notebook 00);
``captioning`` (01), ``embedding`` (02); ``retrieval`` (03); ``evaluation`` (04);
``figures``; ``search``; report; __main__.
"""

__version__ = "0.1.0"
