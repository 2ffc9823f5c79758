"""Mixture-of-Experts language models larger than memory, within a memory budget.

    import hotset

    session = hotset.Session("model.gguf", memory="4GiB")
    for piece in session.generate("Once upon a time", max_tokens=100):
        print(piece, end="", flush=True)
    print(session.stats()["decode"]["hit_rate"])

Every failure is a `hotset.Error`; too small a budget is a `hotset.BudgetTooSmall`, whose `least` says what would do.
"""

from ._errors import BadFile, BudgetTooSmall, Error, InvalidRequest, ReadError, Unsupported
from ._native import __version__
from ._session import Generation, Session
from ._traces import simulate, trace

__all__ = [
    "BadFile",
    "BudgetTooSmall",
    "Error",
    "Generation",
    "InvalidRequest",
    "ReadError",
    "Session",
    "Unsupported",
    "__version__",
    "simulate",
    "trace",
]
