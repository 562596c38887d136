"""llama.cpp's server as xllamacpp brings it, until it is killed; runs in an environment of its own.

``python llama_server.py PORT KEY text MODEL.gguf`` embeds, ``python llama_server.py PORT KEY images
MODEL.gguf MMPROJ.gguf`` captions; without MMPROJ it takes no pictures.
"""

from __future__ import annotations

import sys
import threading

import xllamacpp

port, key, kind, model, *mmproj = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path = model
params.hostnames = ["127.0.0.1"]
params.port = int(port)
params.api_keys = [key]
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = (
    1  # more than cores: 45 times slower
)
params.n_parallel = 1
params.n_ctx = 4096
params.warmup = False
if kind == "text":
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.n_ctx = params.n_batch = params.n_ubatch = 512
if mmproj:
    params.mmproj.path = mmproj[0]
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
threading.Event().wait()
