"""Captioner ``transformers:MODEL``: an image-text-to-text checkpoint on this machine, by hub id or
folder, through its own processor and chat template (LLaVA-NeXT, LLaVA-OneVision, Qwen-VL, SmolVLM,
InternVL, …). Decoding is constrained to the JSON schema of the answer, so every reply parses.
"""

from __future__ import annotations

import threading
from collections import Counter
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import torch
from huggingface_hub import model_info
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    GenerationConfig,
    LogitsProcessor,
)
from transformers.utils import is_accelerate_available, is_bitsandbytes_available

from trsllava_utils.captioner import Question, Reply, Settings
from trsllava_utils.files import InputError, MissingError, content_fingerprint
from trsllava_utils.prompts import LIMITS, make_prompt
from trsllava_utils.weights import device, not_here

LLAVA = "llava-hf/llava-v1.6-mistral-7b-hf"
MAX_BATCH = 64
MEMORY_SHARE = 0.85  # of the memory that is free: what a doubled batch may be expected to take


class TransformersCaptioner:
    """See the module's first paragraph; :class:`~trsllava_utils.captioner.Captioner`.

    The weights are loaded when the first image is described. On CUDA, batches double while the next
    one is expected to fit; a batch that runs out of the GPU's memory is halved.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        self._name = name.removeprefix("transformers:")
        self._settings = settings
        self._prompt = make_prompt(settings)
        self._lock = threading.Lock()  # one batch computes while the next is read from disk
        self._ceiling = settings.batch_size or MAX_BATCH
        self.device = device()
        self.batch_size = settings.batch_size or 1
        self.concurrency = 2 if self.device == "cuda" else 1
        self.attempts = settings.attempts
        self.prompt_text = self._prompt.text
        self.usage: Counter[str] = Counter()
        self.notes: list[str] = []
        self._config = self._read_config()
        self.identity = {
            "model": self._revision(),
            "quantize": settings.quantize,
            "prompt": self._prompt.fingerprint,
            "seed": settings.seed,
            "temperature": settings.temperature,
        }

    def _read_config(self):
        """The configuration, from disk if it is there."""
        try:
            return AutoConfig.from_pretrained(self._name, local_files_only=True)
        except (OSError, ValueError) as error:
            if Path(self._name).exists():
                raise self._missing(error) from None
        try:
            model_info(
                self._name, timeout=10
            )  # fails fast without a network; a download retries for long
            return AutoConfig.from_pretrained(self._name)
        except Exception as error:  # of whichever HTTP library the hub's client uses
            raise self._missing(error) from None

    def _missing(self, error: Exception) -> MissingError:
        hint = f"give the folder of a checkpoint or a hub id such as {LLAVA}"
        return not_here(f"captioner 'transformers:{self._name}'", error, hint)

    def _revision(self) -> str:
        """The model's name, and the hub's commit or the content of the folder."""
        folder = Path(self._name)
        if not folder.is_dir():
            return f"{self._name}@{getattr(self._config, '_commit_hash', None) or 'unknown'}"
        return f"{folder.name}@{content_fingerprint(folder)}"

    @cached_property
    def _loaded(self) -> SimpleNamespace:
        """Processor, model and grammar."""
        import xgrammar

        try:
            processor = AutoProcessor.from_pretrained(self._name)
            model = AutoModelForImageTextToText.from_pretrained(self._name, **self._precision())
        except ImportError as error:  # some processors need torchvision, num2words, …
            raise MissingError(
                f"captioner 'transformers:{self._name}' needs a package that is not installed: "
                f"{' '.join(str(error).split())[:200]}"
            ) from None
        except (OSError, ValueError) as error:
            raise self._missing(error) from None
        if not getattr(processor, "chat_template", None):
            raise InputError(
                f"{self._name} has no chat template; choose an instruction-tuned model"
            )
        if not self._settings.quantize:
            model.to(self.device)
        model.eval()
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "left"  # the answers begin in the same column
        stops = model.generation_config.eos_token_id
        stops = stops if isinstance(stops, list) else [stops or tokenizer.eos_token_id]
        vocabulary = model.config.get_text_config().vocab_size
        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=vocabulary, stop_token_ids=stops
        )
        grammar = xgrammar.GrammarCompiler(info).compile_json_schema(
            self._prompt.schema(), any_whitespace=False
        )
        generation = GenerationConfig(
            # each character may take four byte tokens; the grammar ends the answer long before
            max_new_tokens=256 + 4 * self._settings.n * (sum(LIMITS.values()) + 64),
            do_sample=False,  # the draw is ours: see Draw
            eos_token_id=stops,
            pad_token_id=stops[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )
        return SimpleNamespace(
            processor=processor, model=model, grammar=grammar, generation=generation
        )

    def _precision(self) -> dict:
        """dtype, or quantisation, for ``from_pretrained``."""
        if self._settings.quantize:
            if not (is_bitsandbytes_available() and is_accelerate_available()):
                raise MissingError(
                    f"quantize={self._settings.quantize!r} needs two more packages: "
                    "pip install bitsandbytes accelerate"
                )
            flag = f"load_in_{self._settings.quantize}"
            compute = {"bnb_4bit_compute_dtype": torch.bfloat16} if "4" in flag else {}
            config = BitsAndBytesConfig(**{flag: True}, **compute)
            return {"quantization_config": config, "device_map": "auto"}
        if self.device == "cuda":
            return {"dtype": torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16}
        if self.device == "mps":
            return {"dtype": torch.float16}
        full = self._config.dtype in (None, torch.float32)
        return {"dtype": torch.float32 if full else torch.bfloat16}  # CPUs are slow in float16

    def describe(self, questions: list[Question]) -> list[Reply]:
        with self._lock:
            loaded = self._loaded
        inputs = loaded.processor.apply_chat_template(
            [self._conversation(q) for q in questions],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        try:
            with self._lock:
                texts = self._generate(loaded, inputs, questions)
        except torch.OutOfMemoryError:
            texts = None  # the traceback holds the tensors: let go of it before trying again
        if texts is None:
            return self._halved(questions)
        return [Reply(text, self.identity["model"]) for text in texts]

    def _halved(self, questions: list[Question]) -> list[Reply]:
        if self.device == "cuda":
            torch.cuda.empty_cache()
        half = len(questions) // 2
        if half == 0:
            raise InputError(
                f"{self._name} runs out of memory on a single image; pass a smaller max_side, "
                "quantize '4bit', or a smaller model"
            )
        self._ceiling = half
        self.batch_size = min(self.batch_size, half)
        return self.describe(questions[:half]) + self.describe(questions[half:])

    def _conversation(self, question: Question) -> list[dict]:
        pictures = map(Image.fromarray, question.pictures.values())
        images = [{"type": "image", "image": picture} for picture in pictures]
        text = self._prompt.for_question(question)
        return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]

    @torch.inference_mode()
    def _generate(self, loaded: SimpleNamespace, inputs, questions: list[Question]) -> list[str]:
        from xgrammar.contrib.hf import LogitsProcessor as Grammar

        model = loaded.model
        inputs = inputs.to(model.device, dtype=model.dtype)
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        output = model.generate(
            **inputs,
            generation_config=loaded.generation,
            logits_processor=[Grammar(loaded.grammar), Draw(questions, model.device)],
        )
        if self.device == "cuda":
            self._grow(len(questions), torch.cuda.max_memory_allocated() - before)
        answers = output[:, inputs["input_ids"].shape[1] :]
        self.usage["requests"] += 1
        self.usage["input tokens"] += int(inputs["attention_mask"].sum())
        self.usage["output tokens"] += int((answers != loaded.generation.pad_token_id).sum())
        return loaded.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)

    def _grow(self, size: int, used: int) -> None:
        """Double the batch if twice what this one used can be expected to fit."""
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
        room = free - torch.cuda.memory_allocated()
        if size >= self.batch_size and 2 * used < MEMORY_SHARE * room:
            self.batch_size = min(2 * size, self._ceiling)


class Draw(LogitsProcessor):
    r"""Draws the next token of every row with that row's own seed and temperature.

    The Gumbel-max trick: for independent :math:`g_k = -\log E_k`, :math:`E_k \sim \mathrm{Exp}(1)`,
    :math:`\arg\max_k (\ell_k / T + g_k)` is a draw from :math:`\mathrm{softmax}(\ell / T)` (Gumbel
    1954; Maddison et al. 2014, arXiv 1411.0030). With one generator per row, the words of an image
    do not depend on which images share its batch.
    """

    def __init__(self, questions: list[Question], device: torch.device) -> None:
        self._rows = [
            (torch.Generator(device).manual_seed(q.seed), q.temperature) for q in questions
        ]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for row, (generator, temperature) in zip(scores, self._rows, strict=True):
            if temperature > 0:
                noise = torch.empty_like(row).exponential_(generator=generator).clamp_(min=1e-30)
                row.div_(temperature).sub_(noise.log_())
        return scores
