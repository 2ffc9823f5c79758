"""Recorded routing (`hotset trace`): as arrays, and through caches of many sizes.

With NumPy installed, numbers come as its arrays; without, a trace's come as memoryviews of the same shape, and a simulation's as lists.
"""

import os
from collections.abc import Sequence
from typing import Any

from . import _native

try:
    import numpy
except ImportError:
    numpy = None  # type: ignore[assignment]


def _array(kind: str, shape: Sequence[int], data: bytes) -> Any:
    if numpy is not None:
        return numpy.frombuffer(data, dtype=kind).reshape(shape)
    # An empty view cannot have a shape with a zero.
    return memoryview(data).cast(kind, shape) if data else memoryview(data).cast(kind)


def trace(path: "str | os.PathLike[str]") -> "dict[str, Any]":
    """A recorded run, all of it in memory.

    experts: which expert each token chose, best first; 65535: none. (token, MoE layer, experts of a token)
    weights: their weights, of the same shape, if the trace has them.
    phase: 0 for a prompt's tokens, 1 for decoded ones. (token)
    batch: the same number for tokens that ran together. (token)
    position: in its text. (token)
    prompt_start: the first token of each text.
    expert_bytes: of each MoE layer; 0: not known.
    model, n_expert: the model's name, and experts of a layer.
    """
    read = _native.trace(os.fspath(path))
    return {name: _array(*value) if isinstance(value, tuple) else value for name, value in read.items()}


def simulate(
    trace: "str | os.PathLike[str]",
    policies: "str | Sequence[str]" = ("default", "lru", "belady"),
    slots: "Sequence[int | str] | None" = None,
    *,
    scope: str = "layer",
    prefetch: str = "off",
    warmup: int = 0,
) -> "dict[str, Any]":
    """Replays a trace through caches: the engine's own code on a simulated drive.

    policies: names of the engine's, "belady", "belady-bypass", "static-oracle", "random"; "default" or "all".
    slots: slots a layer, as numbers or as shares such as "25%". None: twelve sizes, from the experts of a token to all.
    scope: "layer", "size" or "global": a pool of slots for each layer, for each size of experts, or one for all.
    prefetch: as for a Session.
    warmup: tokens at the start that run but do not count.

    policies: the names, in the order of rows. slots, share: of each column, as numbers and as shares of a layer's experts.
    hit_rate: of decoding, cold start included. (policy, slots)
    hits, late, misses, demand_bytes, prefetch_bytes: of the same shape. tokens: how many were decoded.
    """
    sweep = {
        "policies": [policies] if isinstance(policies, str) else list(policies),
        "slots": None if slots is None else [str(n) for n in slots],
        "scope": scope,
        "prefetch": prefetch,
        "warmup": warmup,
    }
    result = _native.simulate(os.fspath(trace), sweep)
    if numpy is not None:
        lists = [name for name, value in result.items() if isinstance(value, list) and name != "policies"]
        result.update({name: numpy.array(result[name]) for name in lists})
    return result
