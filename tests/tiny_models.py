"""Models of real architecture and no knowledge: random weights, tiny sizes, saved as any checkpoint
is. The tokenizer is trained on the captions of the sample dataset, so that random
tokens are at least words."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from trsllava_utils.files import PROJECT_ROOT

TEMPLATE = (
    "{% for message in messages %}<s>{{ message.role }}: {% for part in message.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def _captions() -> list[str]:
    sample = json.loads((PROJECT_ROOT / "data/sample/dataset_sample.json").read_text("utf-8"))
    return [s["raw"] for image in sample["images"] for s in image["sentences"]]


def tokenizer(
    *extra: str, vocabulary: int = 1200, texts: Iterable[str] = ()
) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that has learnt the words of some texts; default: the captions of
    the sample dataset."""
    special = ["<pad>", "<s>", "</s>", "<image>", *extra]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts or _captions(),
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet
        ),
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>", *extra],
        model_max_length=8192,
    )


def _text(words, **sizes) -> dict:
    return {
        "vocab_size": len(words),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 16384,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
        **sizes,
    }


def llava_next(folder: Path, **sizes) -> Path:
    """LLaVA-NeXT (Mistral text, CLIP vision); ``sizes`` of the text part."""
    words = tokenizer()
    grid = [[32, 64], [64, 32], [64, 64]]
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.MistralConfig(**_text(words, **sizes)),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        vision_feature_layer=-2,
    )
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    processor = transformers.LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": 32}, crop_size=32, image_grid_pinpoints=grid
        ),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return _save(transformers.LlavaNextForConditionalGeneration, config, processor, folder)


def idefics3(folder: Path, **sizes) -> Path:
    """Idefics3 (Llama text, SigLIP-like vision, images split in tiles), as the first SmolVLM;
    ``sizes`` of the text part."""
    tiles = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    words = tokenizer("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *tiles)
    config = transformers.Idefics3Config(
        vision_config=VISION,
        text_config=transformers.LlamaConfig(**_text(words, **sizes)),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=words.pad_token_id,
    )
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    processor = transformers.Idefics3Processor(
        Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        words,
        image_seq_len=4,
        chat_template=TEMPLATE,
    )
    return _save(transformers.Idefics3ForConditionalGeneration, config, processor, folder)


def clip(folder: Path) -> Path:
    """CLIP, as the zero-shot baseline."""
    words = _with_ends(tokenizer())
    config = transformers.CLIPConfig(
        text_config={**_text(words), "max_position_embeddings": 24, "projection_dim": 16},
        vision_config={**VISION, "projection_dim": 16},
        projection_dim=16,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    processor = transformers.CLIPProcessor(images, words)
    return _save(transformers.CLIPModel, config, processor, folder)


def siglip(folder: Path) -> Path:
    """SigLIP with its own kind of tokenizer; texts are padded to the full length."""
    import sentencepiece
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    folder.mkdir(parents=True, exist_ok=True)
    pieces = folder / "spiece.model"
    with open(pieces, "wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_captions()), model_writer=model, vocab_size=600, minloglevel=2
        )
    words = transformers.SiglipTokenizer(str(pieces), model_max_length=24)
    config = transformers.SiglipConfig(
        text_config={**_text(words), "max_position_embeddings": 24}, vision_config=VISION
    )
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    processor = transformers.SiglipProcessor(images, words)
    return _save(transformers.SiglipModel, config, processor, folder)


def static_text(folder: Path, dim: int = 32) -> Path:
    """A sentence-transformers model that takes the mean of its words' vectors: very fast."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    torch.manual_seed(0)
    words = StaticEmbedding(tokenizer().backend_tokenizer, embedding_dim=dim)
    SentenceTransformer(modules=[words]).save_pretrained(str(folder))
    return folder


def _with_ends(words):
    """Texts begin with <s> and end with </s>, as CLIP's do."""
    ends = [(token, words.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=ends
    )
    return words


def _save(architecture, config, processor, folder: Path) -> Path:
    torch.manual_seed(0)
    model = architecture(config)
    if hasattr(model, "lm_head"):
        _come_to_an_end(model, processor.tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def _come_to_an_end(model, words) -> None:
    """Random weights babble for ever. Here they prefer whole words, a full stop comes after some
    dozen, and a quotation mark behind it. (Two dimensions of the embeddings are set for it.)"""
    embedding, head = model.get_input_embeddings().weight, model.lm_head.weight
    embedding[:, 0], embedding[:, 1] = 1.0, 0.0
    head[:, :2] = 0.0
    ids = {text: words.convert_tokens_to_ids(text) for text in (".", '"')}
    head[[i for text, i in words.get_vocab().items() if re.fullmatch("Ġ[a-z]+", text)], 0] = 0.5
    head[ids["."], 0] = 0.72
    embedding[ids["."], 1], head[ids['"'], 1] = 1.0, 2.0


if __name__ == "__main__":  # python tests/tiny_models.py FOLDER: one to play with by hand
    print(llava_next(Path(sys.argv[1])))
