import os
import signal
import threading
import time

import hotset
import pytest

PROMPT = "Once upon a time there was"


@pytest.fixture
def session(model):
    return hotset.Session(model, ctx=256, session_only=True)


def test_a_text_comes_in_pieces_and_a_seed_repeats_it(session):
    pieces = list(session.generate(PROMPT, max_tokens=24, seed=1))
    assert len(pieces) > 12 and all(pieces)
    assert "".join(session.generate(PROMPT, max_tokens=24, seed=1)) == "".join(pieces)
    assert "".join(session.generate(PROMPT, max_tokens=24, seed=2)) != "".join(pieces)


def test_the_budget_changes_reads_and_no_text(model, session):
    stats = session.stats()
    small = hotset.Session(model, memory=stats["least_bytes"] + (1 << 20), ctx=256, session_only=True, policy="lru")
    texts = ["".join(s.generate(PROMPT, max_tokens=24, temperature=0)) for s in (session, small)]
    assert texts[0] == texts[1]
    assert small.stats()["policy"] == "lru"
    assert small.stats()["bytes_read"] > session.stats()["bytes_read"]


def test_memory_can_be_taken_away_between_two_pieces(session):
    whole = "".join(session.generate(PROMPT, max_tokens=24, temperature=0))
    session.reset()
    text = session.generate(PROMPT, max_tokens=24, temperature=0)
    first = next(text)
    session.set_memory(session.stats()["least_bytes"])
    assert first + "".join(text) == whole
    assert session.stats()["memory_bytes"] == session.stats()["least_bytes"]
    with pytest.raises(hotset.InvalidRequest, match="memory budget of a running session"):
        session.set_memory("1TiB")


def test_why_a_text_ends(session):
    text = session.generate(PROMPT, max_tokens=3, temperature=0, ignore_end=True)
    assert text.finish_reason is None
    words = "".join(text)
    assert (text.finish_reason, text.generated_tokens) == ("length", 3)
    again = session.generate(PROMPT, temperature=0, stop=words.split()[1])
    assert "".join(again) == words[: words.index(words.split()[1])]
    assert again.finish_reason == "stop"
    full = session.generate(PROMPT, max_tokens=None, ignore_end=True, seed=1)
    assert len("".join(full)) > 100 and full.finish_reason == "context"
    cancelled = session.generate(PROMPT)
    next(cancelled)
    cancelled.cancel()
    assert "".join(cancelled) == "" and cancelled.finish_reason == "cancelled"


def test_a_prompt_that_goes_on_computes_only_the_rest(session):
    first = session.generate(PROMPT, max_tokens=4, temperature=0)
    words = "".join(first)
    assert first.reused_tokens == 0
    second = session.generate(PROMPT + words + " and", max_tokens=4, temperature=0)
    assert second.reused_tokens >= first.prompt_tokens
    continued = "".join(second)
    session.reset()
    fresh = session.generate(PROMPT + words + " and", max_tokens=4, temperature=0)
    assert fresh.reused_tokens == 0 and "".join(fresh) == continued


def test_a_second_text_ends_the_first(session):
    first = session.generate(PROMPT, max_tokens=8)
    next(first)
    "".join(session.generate("The", max_tokens=2))
    with pytest.raises(hotset.InvalidRequest, match="another text has begun"):
        list(first)


def test_tokens_and_back(session):
    tokens = session.tokenize("The old king", add_special=False)
    assert len(tokens) >= 3 and session.detokenize(tokens) == "The old king"


def test_chat_answers(session):
    answer = session.chat([{"role": "user", "content": "Hello"}], max_tokens=8, seed=3)
    assert isinstance("".join(answer), str) and answer.prompt_tokens > 1
    assert answer.generated_tokens > 0 or answer.finish_reason == "end"
    with pytest.raises(hotset.InvalidRequest, match="role"):
        session.chat([{"role": "nobody", "content": "Hello"}])
    with pytest.raises(hotset.InvalidRequest, match="enable_thinking"):
        session.chat([{"role": "user", "content": "Hello"}], thinking=True)


def test_statistics_add_up(session):
    "".join(session.generate(PROMPT, max_tokens=12, ignore_end=True))
    stats = session.stats()
    decode = stats["decode"]
    assert decode["tokens"] == 11, "the last token has not run"
    wanted = decode["hits"] + decode["late"] + decode["misses"]
    assert wanted > 0 and wanted % decode["tokens"] == 0
    assert decode["hit_rate"] == pytest.approx(decode["hits"] / wanted)
    assert stats["prompt"]["tokens"] > 1 and stats["prompt"]["seconds"] > 0
    assert stats["n_past"] == stats["prompt"]["tokens"] + decode["tokens"]


def test_errors_are_exceptions_of_one_family(model, tmp_path):
    with pytest.raises(hotset.BudgetTooSmall) as small:
        hotset.Session(model, memory="1MiB", session_only=True, ctx=256)
    assert small.value.least > 1 << 20 and "budget" in str(small.value)
    hotset.Session(model, memory=small.value.least, session_only=True, ctx=256)
    with pytest.raises(hotset.ReadError, match="no-such.gguf") as missing:
        hotset.Session(tmp_path / "no-such.gguf")
    assert isinstance(missing.value, OSError)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(3))
    with pytest.raises(hotset.BadFile):
        hotset.Session(tmp_path / "bad.gguf")
    for wrong, word in [
        ({"policy": "best"}, "policy"),
        ({"prefetch": "all"}, "prefetch"),
        ({"io": "tape"}, "io"),
        ({"kv": "q1"}, "kv"),
        ({"memory": "8"}, "did you mean 8GiB"),
        ({"memory": "lots"}, "memory lots"),
        ({"threads": 0}, "threads"),
        ({"ctx": 0}, "context"),
    ]:
        with pytest.raises(hotset.InvalidRequest, match=word) as refused:
            hotset.Session(model, **{"ctx": 64, "session_only": True} | wrong)
        assert isinstance(refused.value, ValueError) and isinstance(refused.value, hotset.Error)
        assert "\n" not in str(refused.value)
    session = hotset.Session(model, ctx=64, session_only=True)
    for wrong in [{"temperature": -1}, {"top_p": 0}, {"stop": ""}]:
        with pytest.raises(hotset.InvalidRequest):
            session.generate(PROMPT, **wrong)
    with pytest.raises(hotset.InvalidRequest, match="context"):
        session.generate(PROMPT * 50)
    with pytest.raises(TypeError):
        session.generate(PROMPT, temprature=1)


def test_other_threads_run_meanwhile(session):
    counted, over = 0, threading.Event()

    def count():
        nonlocal counted
        while not over.is_set():
            counted += 1
            time.sleep(0.0001)

    counter = threading.Thread(target=count)
    counter.start()
    # One call into the compiled half: a piece comes only after the whole prompt.
    next(session.generate("word " * 200, max_tokens=1, ignore_end=True))
    over.set()
    counter.join()
    assert counted > 5


def test_ctrl_c_interrupts_and_the_text_goes_on(session):
    writing = {"max_tokens": None, "temperature": 0, "ignore_end": True}
    whole = "".join(session.generate(PROMPT, **writing))
    session.reset()
    text = session.generate(PROMPT, **writing)
    pieces = [next(text)]
    interrupt = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        interrupt.start()
        for piece in text:
            pieces.append(piece)
    rest = "".join(text)
    begun = "".join(pieces)
    assert whole.startswith(begun) and rest and whole.endswith(rest)
    # At most the piece that had just come when Python itself was interrupted.
    assert len(whole) - len(begun) - len(rest) < 20
