import subprocess
import sys

import hotset
import numpy
import pytest


def test_a_trace_is_arrays(recorded):
    trace = hotset.trace(recorded)
    experts = trace["experts"]
    n_token, n_layer, used = experts.shape
    assert experts.dtype == numpy.uint16 and experts.max() < trace["n_expert"]
    assert trace["phase"].shape == trace["batch"].shape == trace["position"].shape == (n_token,)
    assert trace["prompt_start"][0] == 0 and trace["expert_bytes"].shape == (n_layer,)
    assert set(numpy.unique(trace["phase"])) <= {0, 1}
    # A token uses an expert once.
    assert all(len(set(choice)) == used for choice in experts.reshape(-1, used)[:500].tolist())


def test_a_miss_ratio_curve_falls_and_belady_is_below_lru(recorded):
    runs = hotset.simulate(recorded, ["lru", "belady", "random"])
    assert runs["policies"] == ["lru", "belady", "random"]
    miss = 1 - runs["hit_rate"]
    assert miss.shape == (3, len(runs["slots"])) and (numpy.diff(runs["share"]) > 0).all()
    assert (miss[1] <= miss[0] + 1e-12).all() and (numpy.diff(miss[1]) <= 1e-12).all()
    assert miss[1].min() < miss[1].max()
    wanted = runs["hits"] + runs["late"] + runs["misses"]
    assert (wanted == wanted[0, 0]).all()
    assert runs["hit_rate"] == pytest.approx(runs["hits"] / wanted)


def test_an_lru_of_the_test_s_own_agrees(recorded):
    trace = hotset.trace(recorded)
    slots = int(trace["experts"].shape[2]) * 2
    hits = misses = 0
    caches = [[] for _ in range(trace["experts"].shape[1])]
    for phase, token in zip(trace["phase"], trace["experts"].tolist(), strict=True):
        for cache, experts in zip(caches, token, strict=True):
            hit = [e in cache for e in experts]
            hits, misses = hits + sum(hit) * int(phase), misses + (len(hit) - sum(hit)) * int(phase)
            for e in [e for e, h in zip(experts, hit, strict=True) if h]:
                cache.remove(e)
                cache.append(e)
            for e in [e for e, h in zip(experts, hit, strict=True) if not h]:
                if len(cache) == slots:
                    cache.pop(0)
                cache.append(e)
    assert (trace["phase"] == 1).all(), "this LRU knows single tokens only"
    runs = hotset.simulate(recorded, "lru", [slots])
    assert (runs["hits"][0, 0], runs["misses"][0, 0]) == (hits, misses)


def test_what_cannot_be_simulated(recorded, tmp_path):
    for wrong, word in [
        ({"policies": "fifo"}, "policies are all, default"),
        ({"policies": []}, "no policies"),
        ({"slots": []}, "no slots"),
        ({"slots": [1]}, "too few"),
        ({"slots": ["many"]}, "slots"),
        ({"scope": "world"}, "scope"),
        ({"prefetch": "all"}, "prefetch"),
        ({"warmup": 10**9}, "warm-up"),
    ]:
        with pytest.raises(hotset.InvalidRequest, match=word):
            hotset.simulate(recorded, **wrong)
    with pytest.raises(hotset.ReadError):
        hotset.trace(tmp_path / "none.trace")
    (tmp_path / "bad.trace").write_bytes(b"no trace")
    with pytest.raises(hotset.BadFile):
        hotset.trace(tmp_path / "bad.trace")


def test_without_numpy_there_are_views_and_lists(recorded):
    program = f"""
import sys
sys.modules["numpy"] = None
import hotset
trace = hotset.trace({str(recorded)!r})
assert isinstance(trace["experts"], memoryview) and len(trace["experts"].shape) == 3
assert trace["experts"].tolist()[0][0][0] == trace["experts"][0, 0, 0] < trace["n_expert"]
runs = hotset.simulate({str(recorded)!r}, "lru", ["50%", "100%"])
assert isinstance(runs["hit_rate"], list) and runs["hit_rate"][0][0] < runs["hit_rate"][0][1]
"""
    subprocess.run([sys.executable, "-c", program], check=True)
