"""Confidence at run time: signals of streamed tokens, the file, plain arithmetic, and the words."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.chat.confidence import (
    WORDS,
    Calibration,
    Signals,
    describe,
    find_calibration,
)
from medical_assistant.engines.base import EngineInfo, Options, Token
from medical_assistant.errors import AdapterError
from tests.support.hub_server import HubServer
from tests.support.paths import ROOT

REVISION = "0123456789ab"


def content(**changes: Any) -> dict[str, Any]:
    """A calibration.json: score = -1 + 2 * (mean_logprob + 1) / 0.5 + 1 * (ended - 0.5) / 0.5, no isotonic steps."""
    return {
        "schema_version": 1,
        "signals": ["mean_logprob", "ended"],
        "means": [-1.0, 0.5],
        "scales": [0.5, 0.5],
        "coefficients": [2.0, 1.0],
        "intercept": -1.0,
        "isotonic": None,
        "label": "a good answer has a token F1 of at least 0.3",
        "base_rate": 0.4,
        "n": 100,
        "ece": 0.05,
        "adapter_revision": REVISION,
        "engine": "stub",
        "decoding": {"temperature": 0.0, "max_new_tokens": 256},
        **changes,
    }


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "calibration.json").write_text(json.dumps(content(**changes)), encoding="utf-8")
    return folder


def load(folder: Path, revision: str | None = REVISION) -> Calibration | None:
    return find_calibration(EngineInfo("stub", "m", str(folder), revision))


# Signals


def test_signals_of_tokens_without_the_signs_of_life():
    signals = Signals()
    for token in (
        Token("", 0.0),
        Token("", 0.0),
        Token("An", -0.5, 1.0),
        Token("", -1.5, 2.0),
        Token("swer", -1.0, 0.0),
    ):
        signals.add(token)
    signals.ended = True
    assert signals.values() == {
        "mean_logprob": -1.0,
        "min_logprob": -1.5,
        "mean_entropy": 1.0,
        "tokens": 3.0,
        "ended": 1.0,
    }


def test_a_sure_token_with_text_counts():
    signals = Signals()
    signals.add(Token("the", 0.0, 0.0))
    assert signals.values()["tokens"] == 1.0


@pytest.mark.parametrize("logprobs", [(-0.5, math.nan), (math.nan, -0.5), (-0.5, -math.inf), ()])
def test_a_probability_that_is_not_known_gives_no_mean_and_no_minimum(logprobs):
    values = Signals(list(logprobs), [1.0] * len(logprobs), ended=False).values()
    assert values["mean_logprob"] is None and values["min_logprob"] is None
    assert values["tokens"] == len(logprobs) and values["ended"] == 0.0
    assert Calibration.from_json(content()).confidence(values) is None


def test_an_engine_without_entropy_gives_none():
    expected = {"mean_logprob": -0.1, "min_logprob": -0.1, "mean_entropy": None, "tokens": 1.0, "ended": None}
    assert Signals([-0.1], [math.nan]).values() == expected


# Arithmetic


def test_logistic_by_hand():
    calibration = Calibration.from_json(content())
    # score = -1 + 2 * 1 + 1 = 2, and -1 + 2 * 0 - 1 = -2
    assert calibration.confidence({"mean_logprob": -0.5, "ended": 1.0}) == pytest.approx(1 / (1 + math.exp(-2)))
    assert calibration.confidence({"mean_logprob": -1.0, "ended": 0.0}) == pytest.approx(1 / (1 + math.exp(2)))


def test_isotonic_knots_by_hand():
    steps = {"x": [0.2, 0.4, 0.8], "y": [0.1, 0.1, 0.5]}
    flat = content(signals=["ended"], means=[0.0], scales=[1.0], coefficients=[0.0], isotonic=steps)
    for probability, expected in ((0.1, 0.1), (0.2, 0.1), (0.3, 0.1), (0.6, 0.3), (0.8, 0.5), (0.99, 0.5)):
        flat["intercept"] = math.log(probability / (1 - probability))
        assert Calibration.from_json(flat).confidence({"ended": 1.0}) == pytest.approx(expected)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_no_confidence_without_every_signal(value):
    calibration = Calibration.from_json(content())
    assert calibration.confidence({"mean_logprob": value, "ended": 1.0}) is None
    assert calibration.confidence({"ended": 1.0}) is None


FINITE = st.floats(allow_nan=False, allow_infinity=False)
KNOTS = st.lists(st.floats(0, 1), min_size=1, max_size=6, unique=True)


@given(
    mean_logprob=FINITE,
    ended=FINITE,
    mean=FINITE,
    scale=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    coefficients=st.tuples(*[st.floats(-1e6, 1e6)] * 3),
    knots=st.one_of(st.none(), KNOTS.map(lambda x: {"x": sorted(x), "y": sorted(x[::-1])})),
)
def test_confidence_is_a_probability_for_any_finite_signals(mean_logprob, ended, mean, scale, coefficients, knots):
    calibration = Calibration.from_json(
        content(
            means=[mean, 0.5],
            scales=[scale, 0.5],
            coefficients=coefficients[:2],
            intercept=coefficients[2],
            isotonic=knots,
        )
    )
    confidence = calibration.confidence({"mean_logprob": mean_logprob, "ended": ended})
    assert confidence is not None and 0 <= confidence <= 1
    assert describe(confidence).startswith("Confidence: ")


# Which answers it is for


@pytest.mark.parametrize(
    ("options", "tokens", "ended", "covered"),
    [
        (Options(max_new_tokens=256), 100, True, True),
        (Options(max_new_tokens=256, seed=7, top_p=0.5), 256, False, True),  # greedy: neither seed nor top-p matters
        (Options(max_new_tokens=256, temperature=0.7), 100, True, False),
        (Options(max_new_tokens=64), 40, True, True),  # the same answer with either limit
        (Options(max_new_tokens=64), 64, False, False),  # cut where the measured one goes on
        (Options(max_new_tokens=1024), 256, True, True),
        (Options(max_new_tokens=1024), 257, True, False),  # the measured one was cut
    ],
)
def test_only_answers_that_the_measured_settings_could_give_are_covered(options, tokens, ended, covered):
    signals = Signals([-0.1] * tokens, [1.0] * tokens, ended).values()
    assert Calibration.from_json(content()).covers(options, signals) is covered


def test_a_sampled_calibration_is_for_its_temperature():
    sampled = Calibration.from_json(content(decoding={"temperature": 0.7, "max_new_tokens": 256}))
    signals = Signals([-0.1], [1.0], True).values()
    assert sampled.covers(Options(temperature=0.7, seed=1), signals)
    assert not sampled.covers(Options(), signals)


# Words


@pytest.mark.parametrize(
    ("confidence", "expected", "share"),
    [
        (0.0, "low", "fewer than 1 in 10"),
        (0.049, "low", "fewer than 1 in 10"),
        (0.05, "low", "about 1 in 10"),
        (0.2, "low", "about 2 in 10"),
        (0.349, "low", "about 3 in 10"),
        (0.35, "medium", "about 4 in 10"),
        (0.649, "medium", "about 6 in 10"),
        (0.65, "high", "about 7 in 10"),
        (0.949, "high", "about 9 in 10"),
        (1.0, "high", "more than 9 in 10"),
    ],
)
def test_word_and_figure_agree(confidence, expected, share):
    line = f"Confidence: {expected}, in tests {share} such answers were close to the reference answer"
    assert describe(confidence) == line
    assert WORDS == "**low** is up to 3 in 10, **medium** 4 to 6, **high** 7 or more"


def test_no_confidence_says_nothing():
    assert describe(None) == ""


# The file


def test_the_file_round_trips(tmp_path):
    steps = {"x": [0.1, 0.7], "y": [0.2, 1 / 3]}
    found = load(write(tmp_path, isotonic=steps, n=77))
    assert found == Calibration.from_json(content(isotonic=steps, n=77))
    assert found.isotonic == ((0.1, 0.2), (0.7, 1 / 3)) and (found.n, found.max_new_tokens) == (77, 256)


@pytest.mark.parametrize(("isotonic", "expected"), [(True, 0.6111111111111112), (False, 0.45774664600482506)])
def test_the_bundled_file_gives_what_it_gave_when_it_was_measured(isotonic, expected):
    bundled = json.loads((ROOT / "assets/adapters/smollm2-135m/calibration.json").read_text(encoding="utf-8"))
    found = Calibration.from_json(bundled if isotonic else {**bundled, "isotonic": None})
    signals = dict(zip(bundled["signals"], (-0.3, -1.2, 0.7, 60, 1), strict=True))
    assert found.confidence(signals) == pytest.approx(expected, rel=1e-12)


def test_no_file_and_a_file_of_other_weights_give_none(tmp_path, caplog):
    assert load(tmp_path) is None and not caplog.records
    write(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path, "ba9876543210") is None
    assert "other weights: run evaluate.py again" in caplog.text
    assert load(write(tmp_path, adapter_revision=None)) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema_version": 2}, "schema version 2, not 1"),
        ({"signals": ["mean_logprob", "mood"]}, "out of range"),
        ({"means": [1.0]}, "argument 2 is shorter"),
        ({"scales": [0.5, 0.0]}, "out of range"),
        ({"coefficients": [1e300, 1.0]}, "out of range"),
        ({"intercept": math.nan}, "out of range"),
        ({"intercept": "one"}, "wrong form"),
        ({"intercept": 10**400}, "wrong form"),
        ({"isotonic": {"x": [0.5, 0.1], "y": [0.1, 0.2]}}, "out of range"),
        ({"isotonic": {"x": [0.1, 0.5], "y": [0.1, 1.2]}}, "out of range"),
        ({"isotonic": {"x": [0.1]}}, "missing or of the wrong form: 'y'"),
        ({"decoding": None}, "wrong form"),
        ({"signals": [["mean_logprob"], "ended"]}, "out of range"),
        ({"means": [math.nan, 1.0]}, "out of range"),
        ({"scales": [math.inf, 1.0]}, "out of range"),
        ({"isotonic": {"x": [0.1, 0.5], "y": [0.1]}}, "argument 2 is shorter"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, changes, reason):
    with pytest.raises(AdapterError, match=reason) as raised:
        load(write(tmp_path, **changes))
    assert "calibration.json is broken" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": 1}', "\x00", "[" * 100_000])
def test_a_file_that_is_no_calibration_is_one_line(tmp_path, text):
    (tmp_path / "calibration.json").write_text(text, encoding="utf-8")
    with pytest.raises(AdapterError, match="run evaluate.py again or delete it") as raised:
        load(tmp_path)
    assert "\n" not in str(raised.value)


# Which calibration belongs to an engine


def test_the_calibration_of_a_local_adapter(tmp_path):
    write(tmp_path)
    found = find_calibration(EngineInfo("stub", "m", str(tmp_path), REVISION))
    assert found is not None and found.n == 100
    assert find_calibration(EngineInfo("stub", "m", None, None)) is None


def test_another_engine_has_other_probabilities(tmp_path, caplog):
    write(tmp_path)
    assert find_calibration(EngineInfo("transformers", "m", str(tmp_path), REVISION)) is None
    assert "measured with stub, not transformers" in caplog.text


def test_a_published_calibration_is_found_by_the_hash_of_the_weights(
    hub_server: HubServer, toy_adapter: Path, signed_in: None
):
    """On the Hub the adapter's revision is a commit, which cannot be known before the file is in it."""
    from medical_assistant.hub.pull import pull_adapter
    from medical_assistant.hub.push import push_adapter
    from medical_assistant.models.adapter import weights_hash

    write(toy_adapter, adapter_revision=weights_hash(toy_adapter))
    push_adapter(toy_adapter, "alice/adapter")
    commit = pull_adapter("alice/adapter").commit
    hub_server.requests.clear()
    found = find_calibration(EngineInfo("stub", "m", "alice/adapter@main", commit))
    assert found is not None and found.adapter_revision == weights_hash(toy_adapter) != commit
    assert hub_server.requests == []  # from the cache


def test_the_import_is_light():
    code = (
        "import sys, medical_assistant.chat.confidence;"
        "print([m for m in ('numpy', 'sklearn', 'scipy', 'torch', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
