"""llama.cpp as a second, independent inference engine, through the C API that the ``xllamacpp`` wheel
exports.

Only token ids go in and only logits come out. Parameter structures are passed by value as opaque blobs larger
than the real ones; the four integers that are set are found at their documented place and checked first.
"""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .forward import Block, Ids, pad
from .models import packaged_model
from .rollouts import Rollouts, Sampler, assemble, uniforms

_LOCK = threading.Lock()
_LIBRARY: ctypes.CDLL | None = None
_KEEP: list[Any] = []
_DEFAULTS = (512, 2048, 512, 1)
"""n_ctx, n_batch, n_ubatch, n_seq_max as ``llama_context_default_params`` returns them: the layout's
check.
"""


class _Params(ctypes.Structure):
    _fields_ = [("raw", ctypes.c_uint8 * 1024)]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("token", "embd", "pos", "n_seq_id", "seq_id", "logits")),
    ]


def available() -> bool:
    """True when the ``xllamacpp`` package is installed."""
    return importlib.util.find_spec("xllamacpp") is not None


def _library() -> ctypes.CDLL:
    global _LIBRARY
    with _LOCK:
        if _LIBRARY is not None:
            return _LIBRARY
        spec = importlib.util.find_spec("xllamacpp")
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                "the llama.cpp engine needs the package xllamacpp: pip install 'opdtheory[engines]'"
            )
        shared = sorted(Path(spec.submodule_search_locations[0]).glob("xllamacpp*.so"))
        if not shared:
            raise ValueError("xllamacpp is installed but its shared library was not found")
        lib = ctypes.CDLL(str(shared[0]))
        pointer, integer = ctypes.c_void_p, ctypes.c_int32
        signatures: dict[str, tuple[Any, list[Any]]] = {
            "llama_backend_init": (None, []),
            "llama_log_set": (None, [pointer, pointer]),
            "llama_model_default_params": (_Params, []),
            "llama_context_default_params": (_Params, []),
            "llama_model_load_from_file": (pointer, [ctypes.c_char_p, _Params]),
            "llama_init_from_model": (pointer, [pointer, _Params]),
            "llama_set_n_threads": (None, [pointer, integer, integer]),
            "llama_model_get_vocab": (pointer, [pointer]),
            "llama_vocab_n_tokens": (integer, [pointer]),
            "llama_vocab_eos": (integer, [pointer]),
            "llama_n_ctx": (ctypes.c_uint32, [pointer]),
            "llama_model_n_ctx_train": (integer, [pointer]),
            "llama_get_memory": (pointer, [pointer]),
            "llama_memory_clear": (None, [pointer, ctypes.c_bool]),
            "llama_memory_seq_rm": (ctypes.c_bool, [pointer, integer, integer, integer]),
            "llama_batch_get_one": (_Batch, [pointer, integer]),
            "llama_decode": (integer, [pointer, _Batch]),
            "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [pointer, integer]),
            "llama_free": (None, [pointer]),
            "llama_model_free": (None, [pointer]),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
        silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
        _KEEP.append(silent)
        lib.llama_log_set(ctypes.cast(silent, ctypes.c_void_p), None)
        lib.llama_backend_init()
        _LIBRARY = lib
        return lib


class LlamaCppEngine:
    """A GGUF file decoded by llama.cpp on the CPU, token by token, one sequence at a time.

    ``context`` is the longest sequence it will hold. One thread by default: more are slower on a busy
    machine. Raises ValueError when the package, the file or the expected C interface is missing.
    """

    rows = 1

    def __init__(self, path: str | Path | None = None, *, context: int = 1024, threads: int = 1) -> None:
        self.path = packaged_model() if path is None else Path(path)
        if not self.path.is_file() or self.path.suffix != ".gguf":
            raise ValueError(f"llama.cpp engine: {self.path} is not a GGUF file")
        lib = self._lib = _library()
        self._model = lib.llama_model_load_from_file(
            str(self.path).encode(), lib.llama_model_default_params()
        )
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {self.path}")
        trained = lib.llama_model_n_ctx_train(self._model)
        if context > trained:
            raise ValueError(f"context {context}: {self.path.name} was trained for {trained}")
        params = lib.llama_context_default_params()
        leading = np.frombuffer(params, dtype=np.uint32)[:4]
        if tuple(leading) != _DEFAULTS:
            raise ValueError(
                f"unknown layout: xllamacpp's parameters start with {tuple(leading)}, expected {_DEFAULTS}"
            )
        leading[:] = (context, min(context, 2048), min(context, 512), 1)
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise ValueError(f"llama.cpp cannot make a context of {context} tokens for {self.path.name}")
        lib.llama_set_n_threads(self._context, threads, threads)
        vocabulary = lib.llama_model_get_vocab(self._model)
        self.vocab = int(lib.llama_vocab_n_tokens(vocabulary))
        self.eos = int(lib.llama_vocab_eos(vocabulary))
        self.context = context
        self.name = "llama.cpp decode"
        self._prompt: list[int] = []
        self._prompt_logits = torch.empty(0)

    def close(self) -> None:
        """Free the model's memory; the engine cannot be used afterwards."""
        if self._context:
            self._lib.llama_free(self._context)
            self._lib.llama_model_free(self._model)
            self._context = self._model = None

    def _feed(self, ids: list[int]) -> torch.Tensor:
        """Append ids to the sequence and return the next token's logits (V,), float32."""
        array = np.ascontiguousarray(ids, dtype=np.int32)
        if array.min() < 0 or array.max() >= self.vocab:
            raise ValueError(f"token ids {array.min()}..{array.max()}: expected 0..{self.vocab - 1}")
        code = self._lib.llama_decode(
            self._context, self._lib.llama_batch_get_one(array.ctypes.data, len(array))
        )
        if code != 0:
            raise RuntimeError(f"llama_decode failed with code {code}")
        logits = np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._context, -1), (self.vocab,))
        return torch.from_numpy(logits.copy())

    def _start(self, prompt: list[int], new_tokens: int) -> torch.Tensor:
        if not prompt:
            raise ValueError("an empty prompt; expected at least one token")
        if len(prompt) + new_tokens > self.context:
            raise ValueError(
                f"{len(prompt)} prompt tokens and {new_tokens} new ones exceed the context {self.context}"
            )
        memory = self._lib.llama_get_memory(self._context)
        # a repeated prompt keeps its cached keys and values: only what followed it is removed
        if prompt == self._prompt and self._lib.llama_memory_seq_rm(memory, 0, len(prompt), -1):
            return self._prompt_logits.clone()
        self._lib.llama_memory_clear(memory, True)
        self._prompt, self._prompt_logits = [], self._feed(prompt)
        self._prompt = list(prompt)
        return self._prompt_logits.clone()

    def generate(self, prompts: Ids, sampler: Sampler, samples: int = 1) -> Rollouts:
        """``samples`` responses to each prompt (rows of one prompt are adjacent)."""
        rows = [list(p) for p in prompts for _ in range(samples)]
        tokens: list[list[int]] = [[] for _ in rows]
        sampled: list[list[float]] = [[] for _ in rows]
        raw: list[list[float]] = [[] for _ in rows]
        for i, prompt in enumerate(rows):
            logits = self._start(prompt, sampler.max_tokens)
            random = torch.from_numpy(uniforms(sampler.seed, i, sampler.max_tokens))
            for t in range(sampler.max_tokens):
                drawn, log_p, log_raw = sampler.draw(logits[None], random[t : t + 1])
                tokens[i].append(int(drawn))
                sampled[i].append(float(log_p))
                raw[i].append(float(log_raw))
                if tokens[i][-1] == self.eos or t + 1 == sampler.max_tokens:
                    break
                logits = self._feed(tokens[i][-1:])
        return assemble(
            rows, tokens, sampled, raw, prompt_id=[i for i in range(len(prompts)) for _ in range(samples)],
            sampler=sampler, engine=self.name, model=self.path.stem, eos=self.eos,
        )  # fmt: skip

    def stream(self, prompts: Ids, responses: Ids, chunk: int = 64) -> Iterator[Block]:
        """Full logits of one sequence's response positions, replayed token by token, ``chunk`` positions at a
        time.
        """
        if len(prompts) != 1:
            raise ValueError(f"llama.cpp replays one sequence at a time, got {len(prompts)}")
        response = list(responses[0])
        _, mask = pad(responses)
        logits = self._start(list(prompts[0]), len(response))
        columns: list[torch.Tensor] = []
        for t, token in enumerate(response):
            columns.append(logits)
            if len(columns) == chunk or t + 1 == len(response):
                start = t + 1 - len(columns)
                yield Block(start, t + 1, torch.stack(columns)[None], mask[:, start : t + 1])
                columns = []
            if t + 1 < len(response):
                logits = self._feed([token])
