"""Checkpoints as llama.cpp reads them; runs in the environment of that server.

``python to_gguf.py bert FOLDER OUT.gguf`` or ``python to_gguf.py idefics3 FOLDER OUT.gguf
MMPROJ.gguf``: text and vision part of a small vision-language model. (llama.cpp has a converter for
all models; it knows tokenizers by the hash of what they do, so not those that tests train.)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

BERT = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "encoder.layer.": "blk.",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
LLAMA = {
    "model.text_model.embed_tokens": "token_embd",
    "model.text_model.norm": "output_norm",
    "lm_head": "output",
    "model.text_model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
VISION = {
    "model.vision_model.embeddings.patch_embedding": "v.patch_embd",
    "model.vision_model.embeddings.position_embedding": "v.position_embd",
    "model.vision_model.post_layernorm": "v.post_ln",
    "model.vision_model.encoder.layers.": "v.blk.",
    "model.connector.modality_projection.proj": "mm.model.fc",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}


def read(folder: Path) -> tuple[dict, dict[str, np.ndarray], dict]:
    """Configuration, tensors in float32 and tokenizer."""
    files = sorted(folder.glob("*.safetensors"))
    tensors = {k: v.astype(np.float32) for file in files for k, v in load_file(file).items()}
    config, words = (
        json.loads((folder / name).read_text("utf-8")) for name in ("config.json", "tokenizer.json")
    )
    return config, tensors, words


def add_tensors(writer: gguf.GGUFWriter, tensors: dict[str, np.ndarray], names: dict) -> None:
    """Those that have a name there."""
    for name, tensor in tensors.items():
        new = name.removeprefix("bert.")
        for old, short in names.items():
            new = new.replace(old, short)
        if new.startswith(("blk.", "v.", "mm.", "token", "position", "output")):
            writer.add_tensor(new, np.ascontiguousarray(tensor))


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def bert(folder: Path, out: Path) -> None:
    """A sentence-transformers model on BERT, mean of its tokens."""
    config, tensors, words = read(folder)
    writer = gguf.GGUFWriter(str(out), "bert")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_token_type_count(config["type_vocab_size"])
    vocabulary = sorted(words["model"]["vocab"], key=words["model"]["vocab"].get)
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    spelled = [
        w if w in special or w.startswith("[unused") else w[2:] if w[:2] == "##" else f"\u2581{w}"
        for w in vocabulary
    ]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(spelled)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if w in special else kinds.NORMAL for w in vocabulary])
    number = words["model"]["vocab"]
    writer.add_unk_token_id(number["[UNK]"])
    writer.add_pad_token_id(number["[PAD]"])
    writer.add_bos_token_id(number["[CLS]"])
    writer.add_sep_token_id(number["[SEP]"])
    writer.add_eos_token_id(number["[SEP]"])
    add_tensors(writer, tensors, BERT)
    finish(writer)


def idefics3(folder: Path, out: Path, mmproj: Path) -> None:
    """Llama text and SigLIP vision."""
    config, tensors, words = read(folder)
    text, vision = config["text_config"], config["vision_config"]
    writer = gguf.GGUFWriter(str(out), "llama")
    heads, width = text["num_attention_heads"], text["hidden_size"]
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    vocabulary = {
        **words["model"]["vocab"],
        **{t["content"]: t["id"] for t in words["added_tokens"]},
    }
    added = {t["content"] for t in words["added_tokens"]}
    in_order = sorted(vocabulary, key=vocabulary.get)
    in_order[-1] = "ĊĊ"  # two line feeds: stands between pictures, so it must be one token
    kinds = gguf.TokenType
    writer.add_vocab_size(len(in_order))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(in_order)
    writer.add_token_types([kinds.CONTROL if w in added else kinds.NORMAL for w in in_order])
    merges = words["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(text["bos_token_id"])
    writer.add_eos_token_id(text["eos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(
        "{% for m in messages %}<s>{{ m.role }}: {% if m.content is string %}{{ m.content }}"
        "{% else %}{% for p in m.content %}{{ p.text if p.text else '' }}{% endfor %}{% endif %}"
        "</s>{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"
    )
    add_tensors(writer, tensors, LLAMA)
    finish(writer)

    writer = gguf.GGUFWriter(str(mmproj), "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "idefics3")
    writer.add_bool("clip.use_gelu", True)
    numbers = {
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "embedding_length": vision["hidden_size"],
        "feed_forward_length": vision["intermediate_size"],
        "projection_dim": width,
        "block_count": vision["num_hidden_layers"],
        "attention.head_count": vision["num_attention_heads"],
        "projector.scale_factor": config["scale_factor"],
    }
    for name, number in numbers.items():
        writer.add_uint32(f"clip.vision.{name}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    add_tensors(writer, tensors, VISION)
    finish(writer)


if __name__ == "__main__":
    kind, *paths = sys.argv[1:]
    {"bert": bert, "idefics3": idefics3}[kind](*map(Path, paths))
