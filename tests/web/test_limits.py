"""How much one client may ask."""

from __future__ import annotations

import math
import re
import threading
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits.storage import memory

from medical_assistant.errors import UserError
from medical_assistant.web import limits as limits_module
from medical_assistant.web.limits import ClientKeys, ClientLimits, LimitError

WINDOW_S = 60.0
MOMENT_S = 0.001  # at exactly 60 s `limits` still counts a question


@contextmanager
def clock_of_the_day(now_s=1000.0):
    """Yield a clock whose `now_s` a test sets; the library has no parameter for it."""
    clock = SimpleNamespace(now_s=now_s)
    with pytest.MonkeyPatch.context() as patch:
        for module in (memory, limits_module):
            patch.setattr(module, "time", SimpleNamespace(time=lambda: clock.now_s))
        yield clock


@pytest.fixture
def clock():
    with clock_of_the_day() as clock:
        yield clock


def ask(limits, client="someone"):
    with limits.enter(client):
        pass


def told_to_wait_s(limits, client="someone"):
    """0 when the client gets in, else the seconds that the refusal names; None when it names none."""
    try:
        ask(limits, client)
    except LimitError as error:
        found = re.search(r"in (\d+) seconds?\.$", str(error))
        return int(found[1]) if found else None
    return 0


def test_a_third_answer_at_once_is_refused_until_one_ends():
    limits = ClientLimits(concurrent=2, per_minute=100)
    with ExitStack() as running:
        running.enter_context(limits.enter("a"))
        with limits.enter("a"):
            with pytest.raises(UserError, match="limit is 2 answers at a time: wait until one is complete"):
                ask(limits, "a")
            ask(limits, "b")
        ask(limits, "a")


def test_an_answer_that_fails_is_over():
    limits = ClientLimits(concurrent=1)
    with pytest.raises(ZeroDivisionError), limits.enter("a"):
        _ = 1 / 0
    ask(limits, "a")


def test_the_refusal_names_the_limit_and_the_wait(clock):
    limits = ClientLimits(per_minute=3)
    for _ in range(3):
        ask(limits)
        clock.now_s += 10
    with pytest.raises(UserError, match=r"^The limit is 3 questions a minute: ask again in 30 seconds\.$"):
        ask(limits)
    clock.now_s += 29
    with pytest.raises(UserError, match=r"in 1 second\.$"):
        ask(limits)
    clock.now_s += 1 + MOMENT_S
    ask(limits)


def test_a_refused_question_is_not_counted(clock):
    limits = ClientLimits(per_minute=1)
    ask(limits)
    for _ in range(50):
        clock.now_s += 1
        assert told_to_wait_s(limits) == 60 - (clock.now_s - 1000)
    clock.now_s += 10 + MOMENT_S
    assert told_to_wait_s(limits) == 0


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 5))
def test_no_minute_has_more_answers_than_the_limit(pauses_s, per_minute):
    admitted_s = []
    with clock_of_the_day() as clock:
        limits = ClientLimits(per_minute=per_minute)
        for pause_s in pauses_s:
            clock.now_s += pause_s
            if told_to_wait_s(limits) == 0:
                admitted_s.append(clock.now_s)
    for now_s in admitted_s:
        assert sum(now_s - WINDOW_S < other_s <= now_s for other_s in admitted_s) <= per_minute


@given(st.lists(st.integers(-100_000, 100), max_size=60))
def test_a_clock_that_jumps_back_locks_nobody_out(steps_s):
    with clock_of_the_day() as clock:
        limits = ClientLimits(per_minute=2)
        for step_s in steps_s:
            clock.now_s += step_s
            wait_s = told_to_wait_s(limits)
            assert 0 <= wait_s <= WINDOW_S
            if wait_s:
                clock.now_s += wait_s + MOMENT_S
                assert told_to_wait_s(limits) == 0


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(-50, 90)), max_size=300))
def test_memory_is_bounded(visits):
    with clock_of_the_day() as clock:
        limits = ClientLimits(max_clients=20)
        for client, step_s in visits:
            clock.now_s += step_s
            told_to_wait_s(limits, str(client))
            assert len(limits._storage.events) <= 20


def test_a_client_that_asks_on_is_not_forgotten_where_memory_is_full(clock):
    limits = ClientLimits(per_minute=2, max_clients=3)
    for client in ("greedy", "b", "c", "greedy"):
        ask(limits, client)
    assert told_to_wait_s(limits, "greedy") == 60
    ask(limits, "d")
    assert len(limits._storage.events) == 3


def test_clients_are_forgotten_after_a_minute(clock):
    limits = ClientLimits()
    for client in range(100):
        clock.now_s += 1
        ask(limits, str(client))
    assert len(limits._storage.events) <= 61
    clock.now_s += WINDOW_S
    ask(limits, "the last")
    assert len(limits._storage.events) == 1


def test_who_still_gets_an_answer_is_not_forgotten(clock):
    limits = ClientLimits(concurrent=1, max_clients=3)
    with limits.enter("slow"):
        for i in range(50):
            clock.now_s += 2 * WINDOW_S
            ask(limits, f"other {i}")
        with pytest.raises(LimitError, match="1 answer at a time"):
            ask(limits, "slow")
    ask(limits, "slow")


def test_no_thread_is_left_behind():
    limits = ClientLimits(per_minute=1000)
    for client in range(100):
        ask(limits, str(client))
    limits._storage.timer.join()  # the library clears expired questions in a thread, once it has been asked
    assert not limits._storage.timer.is_alive()


def test_many_threads_never_pass_the_limit():
    limits = ClientLimits(concurrent=2, per_minute=10_000)
    lock, running, most, refused = threading.Lock(), 0, 0, 0

    def work():
        nonlocal running, most, refused
        for _ in range(200):
            try:
                with limits.enter("a"):
                    with lock:
                        running += 1
                        most = max(most, running)
                    with lock:
                        running -= 1
            except LimitError:
                with lock:
                    refused += 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 2 and running == 0 and refused < 1600
    ask(limits, "a")


@pytest.mark.parametrize("limits", [{"concurrent": 0}, {"per_minute": -1}])
def test_a_limit_that_would_lock_everybody_out_is_an_error(limits):
    with pytest.raises(UserError, match="use 1 or more"):
        ClientLimits(**limits)


# Keys


def request(peer="10.0.0.1", **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return SimpleNamespace(headers=headers, client=SimpleNamespace(host=peer) if peer else None)


def test_the_forwarded_address_counts_only_where_it_can_be_trusted():
    at_home, on_space = ClientKeys(), ClientKeys(trust_forwarded=True)
    first = request(x_forwarded_for="203.0.113.5, 10.1.1.1")
    second = request(x_forwarded_for="203.0.113.6, 10.1.1.1")
    assert at_home.of(first) == at_home.of(second) == at_home.of(request())
    assert on_space.of(first) != on_space.of(second)
    assert on_space.of(first) == on_space.of(request("10.9.9.9", x_forwarded_for="203.0.113.5"))
    assert on_space.of(request()) == on_space.of(request(x_forwarded_for=" "))


def test_keys_say_nothing_of_the_address_and_differ_between_processes():
    keys = [ClientKeys().of(request("203.0.113.5")) for _ in range(2)]
    assert keys[0] != keys[1]
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in keys)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),  # one household's network
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:203.0.113.5", "203.0.113.5", True),
        ("203.0.113.5", "203.0.113.6", False),
        ("::1", "::2", True),
        ("unknown", "hidden", False),
    ],
)
def test_addresses_of_one_client_have_one_key(one, other, same):
    keys = ClientKeys()
    assert (keys.of(request(one)) == keys.of(request(other))) is same


def test_a_request_without_an_address_has_a_key():
    keys = ClientKeys()
    assert keys.of(None) == keys.of(request(peer=None))


@given(st.text())
def test_any_header_gives_a_key(text):
    assert len(ClientKeys(trust_forwarded=True).of(request(x_forwarded_for=text))) == 32


def test_the_wait_is_whole_seconds_and_enough():
    with clock_of_the_day(0.25) as clock:
        limits = ClientLimits(per_minute=1)
        ask(limits)
        clock.now_s += 0.5
        wait_s = told_to_wait_s(limits)
        assert wait_s == math.ceil(59.5)
        clock.now_s += wait_s
        assert told_to_wait_s(limits) == 0
