from collections.abc import Iterator
from typing import Any

__version__: str

class Generation(Iterator[str]):
    """A text as an iterator of its pieces, each computed when it is asked for."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
    @property
    def reused_tokens(self) -> int:
        """Those of them that an earlier text had computed already."""
    @property
    def generated_tokens(self) -> int:
        """Tokens of the text so far."""
    @property
    def finish_reason(self) -> str | None:
        """Why the text ended: "end", "stop", "length", "context", "cancelled"; None while it has not."""
    @property
    def reasoning(self) -> str:
        """What the model thought before it answered, so far; only chat tells it apart."""
    @property
    def tool_calls(self) -> list[tuple[str, str]]:
        """Tools that the model wanted to call, as (name, arguments); only chat tells them apart."""
    def cancel(self) -> None:
        """Ends the text here."""
    def __iter__(self) -> Generation: ...
    def __next__(self) -> str: ...

class Session:
    def __init__(self, path: str, memory: str | None, opening: dict[str, Any]) -> None: ...
    def generate(self, prompt: str, writing: dict[str, Any]) -> Generation: ...
    def chat(self, messages: list[tuple[str, str]], thinking: bool | None, writing: dict[str, Any]) -> Generation: ...
    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]: ...
    def detokenize(self, tokens: list[int]) -> str: ...
    def set_memory(self, memory: str) -> None: ...
    def reset(self) -> None: ...
    def stats(self) -> dict[str, Any]: ...

def trace(path: str) -> dict[str, Any]: ...
def simulate(path: str, sweep: dict[str, Any]) -> dict[str, Any]: ...
