"""Captioner ``transformers:MODEL``: an image-text-to-text checkpoint on this machine, by hub id or
folder, through its own processor and chat template (LLaVA-NeXT, LLaVA-OneVision, Qwen-VL, SmolVLM,
InternVL, …).

The model reads an image and the prompt once. The variants are rows of one batch that go on from
there, each with a closing sentence (its focus) and a seed of its own; they do not see one another.
Decoding is bound to the JSON schema of a variant. Lengths are no part of it: a grammar with lengths
forbids escapes, and so quotation marks. The gate refuses what is too long.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections import Counter
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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

from trsllava_extras.schema import schema
from trsllava_utils.captioner import Question, Reply, Settings
from trsllava_utils.files import InputError, MissingError, fingerprint
from trsllava_utils.prompts import LIMITS, Prompt, make_prompt
from trsllava_utils.weights import NO_CODE, content_fingerprint, device, not_here

LLAVA = "llava-hf/llava-v1.6-mistral-7b-hf"
MAX_BATCH = 64  # images
MEMORY_SHARE = 0.85  # of the memory that is free: what a doubled batch may be expected to take
CHARACTERS_A_TOKEN = 2  # English has four, other languages fewer
_PROMPTS = Path(__file__).with_name("prompt_texts")
_END = "\N{END OF TEXT}"  # marks where the closing sentence of a row stands; no prompt holds it


class Rows:
    """What is asked: of ``rsrt`` and ``style`` each variant in a row of its own, with a prompt for
    one variant; of other prompts, and of a user's own prompt file, the whole answer in one row.

    Attributes:
        prompt: what is asked of all rows, and the number of variants in the answer.
        closings: the last sentence of each row.
        schema: of the answer in a row.
    """

    def __init__(self, settings: Settings) -> None:
        self.prompt: Prompt = make_prompt(settings)
        self.closings = [""]
        self.schema = schema(self.prompt)
        self.apart = (_PROMPTS / f"{settings.prompt}.txt").is_file() and not settings.prompt_file
        if self.apart:
            own = {"variants": 1, "prompt_file": str(_PROMPTS / f"{settings.prompt}.txt")}
            one = make_prompt(replace(settings, **own))
            self.prompt = replace(one, n=settings.n)
            focus = (_PROMPTS / "focus.txt").read_text(encoding="utf-8").splitlines()
            self.closings = focus[: settings.n]
            self.schema = self.schema["properties"]["variants"]["items"]

    @property
    def fingerprint(self) -> str:
        """Changes when anything of it does."""
        return fingerprint(self.prompt.fingerprint, self.closings, self.apart)

    @property
    def text(self) -> str:
        """All that is asked."""
        return "\n".join([self.prompt.text, *filter(None, self.closings)])

    def joined(self, replies: list[str]) -> str:
        """The replies of all rows as one."""
        return f'{{"variants": [{", ".join(replies)}]}}' if self.apart else replies[0]


class TransformersCaptioner:
    """See the module's first paragraph; :class:`~trsllava_utils.captioner.Captioner`.

    The weights are loaded when the first image is described. On CUDA, batches double while the next
    one is expected to fit; a batch that runs out of the GPU's memory is halved.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        self._name = name.removeprefix("transformers:")
        self._settings = settings
        self._rows = Rows(settings)
        self._lock = threading.Lock()  # one batch computes while the next is read from disk
        self.device = device()
        # int8 scales the activations of a batch together: alone, words do not depend on others
        self.batch_size = 1 if self._is_int8 else settings.batch_size or 1
        self._ceiling = 1 if self._is_int8 else settings.batch_size or MAX_BATCH
        self.concurrency = 2 if self.device == "cuda" else 1
        self.attempts = settings.attempts
        self.prompt_text = self._rows.text
        self.usage: Counter[str] = Counter()
        self.notes: list[str] = []
        self._config = self._read_config()
        self.identity = {
            "model": self._revision(),
            "quantize": settings.quantize,
            "prompt": self._rows.fingerprint,
            "seed": settings.seed,
            "temperature": settings.temperature,
        }

    def _read_config(self):
        """The configuration, from disk if it is there."""
        try:
            return AutoConfig.from_pretrained(self._name, local_files_only=True, **NO_CODE)
        except (OSError, ValueError) as error:
            if Path(self._name).exists():
                raise self._missing(error) from None
        try:  # fails fast without a network; a download retries for long
            model_info(self._name, timeout=10)
            return AutoConfig.from_pretrained(self._name, **NO_CODE)
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
            processor = AutoProcessor.from_pretrained(self._name, **NO_CODE)
            model = AutoModelForImageTextToText.from_pretrained(
                self._name, **NO_CODE, **self._precision()
            )
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
        if self._is_int8:
            with warnings.catch_warnings():  # it is to move to torchao, where it is slower yet
                warnings.simplefilter("ignore")
                linear = {torch.nn.Linear}
                torch.ao.quantization.quantize_dynamic(model, linear, torch.qint8, inplace=True)
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "left"  # the answers begin in the same column
        stops = model.generation_config.eos_token_id
        stops = stops if isinstance(stops, list) else [stops or tokenizer.eos_token_id]
        vocabulary = model.config.get_text_config().vocab_size
        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=vocabulary, stop_token_ids=stops
        )
        grammar = xgrammar.GrammarCompiler(info).compile_json_schema(
            self._rows.schema, any_whitespace=False
        )
        texts = self._settings.n if len(self._rows.closings) == 1 else 1
        generation = GenerationConfig(
            max_new_tokens=64 + texts * sum(LIMITS.values()) // CHARACTERS_A_TOKEN,
            do_sample=False,  # the draw is ours: see Draw
            return_dict_in_generate=True,
            eos_token_id=stops,
            pad_token_id=stops[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )
        reading = GenerationConfig(**{**generation.to_dict(), "max_new_tokens": 1})
        parts = {"processor": processor, "model": model, "grammar": grammar}
        return SimpleNamespace(**parts, generation=generation, reading=reading)

    def _precision(self) -> dict:
        """dtype, or quantisation, for ``from_pretrained``."""
        if self._settings.quantize and not self._is_int8:
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
        # CPUs are slow in half precision: without units for it four times
        return {"dtype": torch.float16 if self.device == "mps" else torch.float32}

    @property
    def _is_int8(self) -> bool:
        """Whether the weights are whole numbers of 8 bits, for the CPU."""
        return self._settings.quantize == "8bit" and self.device == "cpu"

    def describe(self, questions: list[Question]) -> list[Reply]:
        with self._lock:
            loaded = self._loaded
        replies: dict[int, Reply] = {}
        edges = [longest_edge(loaded.processor, question) for question in questions]
        for edge in dict.fromkeys(edges):  # pictures of one size are read together
            places = [place for place, other in enumerate(edges) if other == edge]
            alike = [questions[place] for place in places]
            replies |= zip(places, self._described(loaded, alike, edge), strict=True)
        return [replies[place] for place in range(len(questions))]

    def _described(self, loaded: SimpleNamespace, questions: list[Question], edge: int) -> list:
        """The replies to questions whose pictures are read at one size."""
        heads, tails = zip(*(self._around(loaded, question) for question in questions), strict=True)
        pictures = [[*map(Image.fromarray, q.pictures.values())] for q in questions]
        begun = loaded.processor.tokenizer.bos_token or "\0"
        inputs = loaded.processor(
            text=[*heads],
            images=pictures,
            images_kwargs={"size": {"longest_edge": edge}} if edge else {},
            text_kwargs={"padding": True, "add_special_tokens": not heads[0].startswith(begun)},
            return_tensors="pt",
        )
        closings = [closing + tail for tail in tails for closing in self._rows.closings]
        try:
            with self._lock:
                rows = self._generate(loaded, inputs, closing_tokens(loaded, closings), questions)
        except torch.OutOfMemoryError:
            rows = None  # the traceback holds the tensors: let go of it before trying again
        if rows is None:
            return self._halved(questions)
        each = len(self._rows.closings)
        return [self._reply(rows[start : start + each]) for start in range(0, len(rows), each)]

    def _around(self, loaded: SimpleNamespace, question: Question) -> tuple[str, str]:
        """What the model reads before the closing sentence of a row, and after it."""
        text = self._rows.prompt.for_question(question)
        images = [{"type": "image"} for _ in question.pictures]
        said = [{"role": "user", "content": [*images, {"type": "text", "text": f"{text}\n{_END}"}]}]
        template = loaded.processor.apply_chat_template
        head, _, tail = template(said, add_generation_prompt=True).rpartition(_END)
        return head, tail

    def _reply(self, rows: list[tuple[str, bool]]) -> Reply:
        """The rows of an image as one reply."""
        text = self._rows.joined([row for row, _ in rows])
        cut = next((n for n, (_, whole) in enumerate(rows, 1) if not whole), 0)
        return Reply(text, self.identity["model"], f"cut off: variant {cut}" if cut else "")

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

    @torch.inference_mode()
    def _generate(
        self, loaded: SimpleNamespace, inputs: Any, ends: torch.Tensor, questions: list[Question]
    ) -> list[tuple[str, bool]]:
        """The text of each row, and whether it came to its end."""
        from xgrammar.contrib.hf import LogitsProcessor as Grammar

        model, each = loaded.model, len(self._rows.closings)
        inputs = inputs.to(model.device, dtype=model.dtype)
        ends = {"input_ids": ends.to(model.device)}
        ends["attention_mask"] = torch.ones_like(ends["input_ids"])
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        cache = model.generate(**inputs, generation_config=loaded.reading).past_key_values
        cache.batch_repeat_interleave(each)
        if getattr(model.model, "rope_deltas", None) is not None:  # positions in Qwen's pictures
            model.model.rope_deltas = model.model.rope_deltas.repeat_interleave(each, 0)
        rows = {
            name: torch.cat([inputs[name].repeat_interleave(each, 0), ends[name]], 1)
            for name in ("input_ids", "attention_mask")
        }
        answers = model.generate(
            **rows,
            past_key_values=cache,
            generation_config=loaded.generation,
            logits_processor=[Grammar(loaded.grammar), Draw(questions, each, model.device)],
        ).sequences[:, rows["input_ids"].shape[1] :]
        if self.device == "cuda":
            self._grow(len(questions), torch.cuda.max_memory_allocated() - before)
        self.usage["requests"] += 1
        read = inputs["attention_mask"].sum() + ends["attention_mask"].sum()
        self.usage["input tokens"] += int(read)
        self.usage["output tokens"] += int((answers != loaded.generation.pad_token_id).sum())
        stops = torch.tensor(loaded.generation.eos_token_id, device=answers.device)
        texts = loaded.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return list(zip(texts, torch.isin(answers, stops).any(1).tolist(), strict=True))

    def _grow(self, size: int, used: int) -> None:
        """Double the batch if twice what this one used can be expected to fit."""
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
        room = free - torch.cuda.memory_allocated()
        if size >= self.batch_size and 2 * used < MEMORY_SHARE * room:
            self.batch_size = min(2 * size, self._ceiling)


def closing_tokens(loaded: SimpleNamespace, closings: list[str]) -> torch.Tensor:
    """The tokens of closing sentences, ``(n, longest)``. Shorter ones begin with line feeds and not
    with padding: attention without a mask takes half the time."""
    tokenizer = loaded.processor.tokenizer
    *_, feed = tokenizer("\n", add_special_tokens=False)["input_ids"]
    ids = tokenizer(closings, add_special_tokens=False)["input_ids"]
    longest = max(map(len, ids))
    return torch.tensor([[feed] * (longest - len(row)) + row for row in ids])


class Draw(LogitsProcessor):
    """Draws the next token of every row with that row's own seed and temperature, among the tokens
    that the grammar allows: one uniform number a row, looked up in the cumulated probabilities. So
    the words of an image do not depend on which images share its batch."""

    def __init__(self, questions: list[Question], each: int, device: torch.device) -> None:
        self._seeds = [
            torch.Generator(device).manual_seed(q.seed + n) for q in questions for n in range(each)
        ]
        degrees = [max(q.temperature, 1e-6) for q in questions for _ in range(each)]  # 0: likeliest
        self._degrees = torch.tensor(degrees, device=device)[:, None]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        up_to = torch.softmax(scores.float() / self._degrees, 1).cumsum(1)
        shares = [torch.rand(1, generator=seed, device=scores.device) for seed in self._seeds]
        # the first token above: one of probability 0 is as high as the one before it
        drawn = torch.searchsorted(up_to, torch.stack(shares) * up_to[:, -1:], right=True)
        return torch.full_like(scores, -math.inf).scatter_(1, drawn, 0.0)


def longest_edge(processor: Any, question: Question) -> int:
    """The size, in pixels, to which its pictures are enlarged before they are cut into tiles; 0
    where the processor does nothing of the kind. (Idefics3 and SmolVLM enlarge every picture to 17
    tiles; those without a new pixel are left out here.)"""
    reader = processor.image_processor
    tile = getattr(reader, "max_image_size", None) and reader.max_image_size["longest_edge"]
    if not tile or not getattr(reader, "do_image_splitting", False):
        return 0
    side = max(max(picture.shape[:2]) for picture in question.pictures.values())
    return min(tile * math.ceil(side / tile), reader.size["longest_edge"])
