"""A model within a budget."""

import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import _native
from ._native import Generation

__all__ = ["Generation", "Session"]


class Session:
    """A model within a memory budget.

    Other Python threads run while it computes, and Ctrl-C works between tokens. A session computes for one thread at a time; others
    wait. Several sessions may be open, of the same model or of others.
    """

    def __init__(
        self,
        path: "str | os.PathLike[str]",
        memory: "str | int | None" = None,
        *,
        ctx: "int | None" = None,
        batch: "int | None" = None,
        policy: "str | None" = None,
        prefetch: "str | None" = None,
        io: "str | None" = None,
        kv: "str | None" = None,
        threads: "int | None" = None,
        fill: bool = False,
        session_only: bool = False,
    ) -> None:
        """Opens a model file (GGUF; of a split set any file).

        memory: the budget, as bytes or as text: "4GiB", "500MB", "30%" of the model's files. None: four fifths of what the machine has
            free, and less while the machine is short of memory.
        ctx: tokens of context. None: the model's own, at most 4096.
        batch: tokens of a prompt that run together.
        policy: which experts leave memory: "lfu-adaptive" (the default), "echo", "lfu-decay", "lfuda", "lru", "slru".
        prefetch: what is read ahead: "auto" (the default), "auto-votes", "lookahead", "votes", "both", "history", "off".
        io: how experts are read: "pread", "direct", "uring", "mapped", "page-cache". None: what suits files, budget and drive.
        kv: type of the KV cache: "f16" (the default), "f32", "q8_0".
        threads: threads that compute. None: as many as there are cores to use.
        fill: fill free slots with experts while the drive is idle.
        session_only: the budget is what this session allocates, instead of what the whole process stays within. For a process that
            holds much else, or several sessions.
        """
        opening = {
            "ctx": ctx,
            "batch": batch,
            "policy": policy,
            "prefetch": prefetch,
            "io": io,
            "kv": kv,
            "threads": threads,
            "fill": fill,
            "session_only": session_only,
        }
        self._native = _native.Session(os.fspath(path), None if memory is None else str(memory), opening)

    def generate(self, prompt: str, **writing: Any) -> Generation:
        """Continues `prompt`: an iterator of pieces of text, each computed when it is asked for.

        max_tokens: tokens at most (256). None: as many as the context holds.
        temperature: 0 always takes the most likely token (0.8).
        top_k, top_p, min_p, repeat_penalty, repeat_last_n: as in `hotset run` (40, 0.95, 0.05, 1.0, 64).
        seed: the same seed, prompt and options give the same text, whatever the budget. None: another one each time.
        stop: texts before which the generated one ends.
        ignore_end: go on after the model has ended its text.

        Control tokens that are spelled out in the prompt are read as such. A prompt that begins like what the session holds computes
        only the rest. The iterator's `finish_reason` is None until the text ends; a second text on the session ends the first.
        """
        return self._native.generate(prompt, _writing(**writing))

    def chat(
        self, messages: Iterable[Mapping[str, str]], *, thinking: "bool | None" = None, **writing: Any
    ) -> Generation:
        """The model's answer to `[{"role": "user", "content": "Hello"}]`, by the chat template of its file.

        thinking: whether the model thinks first, where its template knows that. What it thinks is in the iterator's `reasoning`.
        The other options are those of `generate`.
        """
        said = [(message["role"], message["content"]) for message in messages]
        return self._native.chat(said, thinking, _writing(**writing))

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> "list[int]":
        """The tokens of a text.

        add_special: put the beginning and end tokens around it that the model's file asks for.
        parse_special: read control tokens that are spelled out in the text as such.
        """
        return self._native.tokenize(text, add_special, parse_special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of a sequence of tokens, without control tokens."""
        return self._native.detokenize(list(tokens))

    def set_memory(self, memory: "str | int") -> None:
        """Sets another budget, from `least_bytes` to `most_bytes` of `stats()`, also between two pieces of a text."""
        self._native.set_memory(str(memory))

    def reset(self) -> None:
        """Forgets the session's tokens. Experts stay in memory."""
        self._native.reset()

    def stats(self) -> "dict[str, Any]":
        """What the session is and counted: the budget, the context, and for `prompt` and `decode` each the tokens, seconds, and how
        many experts were hits, late (already being read) and misses."""
        return self._native.stats()


def _writing(
    *,
    max_tokens: "int | None" = 256,
    temperature: float = 0.8,
    top_k: int = 40,
    top_p: float = 0.95,
    min_p: float = 0.05,
    repeat_penalty: float = 1.0,
    repeat_last_n: int = 64,
    seed: "int | None" = None,
    stop: "str | Sequence[str]" = (),
    ignore_end: bool = False,
) -> "dict[str, Any]":
    return {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "repeat_last_n": repeat_last_n,
        "seed": secrets.randbits(32) if seed is None else seed,
        "stop": [stop] if isinstance(stop, str) else list(stop),
        "ignore_end": ignore_end,
    }
