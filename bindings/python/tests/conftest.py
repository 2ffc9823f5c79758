import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def model() -> str:
    return str(ROOT / "assets" / "moe-s-q4_0.gguf")


@pytest.fixture(scope="session")
def recorded() -> pathlib.Path:
    return ROOT / "tests" / "data" / "trace" / "made-up.trace"
