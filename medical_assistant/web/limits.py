"""How much one client may ask: answers at once and a minute. Addresses are never kept, only salted hashes."""

from __future__ import annotations

import hashlib
import ipaddress
import math
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from medical_assistant.errors import UserError

MAX_CLIENTS = 4_096  # remembered at most, about 1 kB each (20 questions: 4 kB); then the earliest is forgotten
IPV6_PREFIX = 64  # one household or phone has this whole network (RFC 6177), so its addresses are one client


class LimitError(UserError):
    """A client asks too much. The text names the limit and says when to try again."""


class ClientLimits:
    """At most `concurrent` answers at once and `per_minute` in any 60 s for each client. Thread-safe.

    Raises `UserError` for a limit below 1.
    """

    def __init__(self, concurrent: int = 2, per_minute: int = 20, max_clients: int = MAX_CLIENTS) -> None:
        if concurrent < 1 or per_minute < 1:
            raise UserError("A client's limits are below 1: use 1 or more answers at once and a minute.")
        self._concurrent, self._per_minute, self._max_clients = concurrent, per_minute, max_clients
        self._running: list[str] = []  # the client of each answer
        self._rate = RateLimitItemPerMinute(per_minute)
        self._storage = MemoryStorage()
        self._window = MovingWindowRateLimiter(self._storage)
        self._latest_s = 0.0  # time of day of the latest question
        self._lock = threading.Lock()

    @contextmanager
    def enter(self, client: str) -> Iterator[None]:
        """Count one answer of `client`, a key of `ClientKeys`, for as long as the block runs.

        Raises `LimitError` where the client has reached a limit; a refused question is not counted.
        """
        with self._lock:
            if self._running.count(client) >= self._concurrent:
                raise LimitError(
                    f"The limit is {_count(self._concurrent, 'answer')} at a time: "
                    "wait until one is complete, or stop it, then ask again."
                )
            self._count_question(client)
            self._running.append(client)
        try:
            yield
        finally:
            # Without the lock: the garbage collector may end a dropped answer in a thread that holds it.
            self._running.remove(client)

    def _count_question(self, client: str) -> None:
        now_s = time.time()  # `limits` measures with the clock of the day too
        if now_s < self._latest_s:
            self._storage.reset()  # the earlier times would lock clients out until the clock has caught up
        self._latest_s = now_s
        self._forget_clients(now_s, self._rate.key_for(client))
        if not self._window.hit(self._rate, client):
            wait_s = math.ceil(self._window.get_window_stats(self._rate, client).reset_time - now_s)
            wait = _count(min(max(1, wait_s), 60), "second")
            raise LimitError(f"The limit is {_count(self._per_minute, 'question')} a minute: ask again in {wait}.")

    def _forget_clients(self, now_s: float, newest: str) -> None:
        """Forget whoever asked nothing for a minute, and the earliest where there is no room for `newest`.

        `limits` 5.8 forgets the questions itself, but keeps an empty entry of every client for ever.
        """
        events = self._storage.events  # by client, the latest question first
        for key, asked in list(events.items()):
            is_full = newest not in events and len(events) >= self._max_clients
            if is_full or not asked or asked[0].expiry <= now_s:
                with self._storage.locks[key]:  # its timer works on the same entry
                    self._storage.clear(key)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class ClientKeys:
    """Turns addresses into keys that mean nothing outside this process: a hash under a random salt.

    `trust_forwarded` is for a Space, whose proxy names the client in X-Forwarded-For; elsewhere anybody may
    write that header, and the address of the connection counts.
    """

    def __init__(self, trust_forwarded: bool = False) -> None:
        self._trust_forwarded = trust_forwarded
        self._salt = secrets.token_bytes(32)

    def of(self, request: Any) -> str:
        """Return the key of a `gradio.Request` or a Starlette request. Requests without an address share one key."""
        address = ""
        if request is not None:
            if self._trust_forwarded:
                address = (request.headers.get("x-forwarded-for") or "").split(",")[0].strip()
            address = address or (request.client.host if request.client else "")
        return hashlib.blake2b(_network(address).encode(), key=self._salt, digest_size=16).hexdigest()


def _network(address: str) -> str:
    """Return an IPv4 address as it is, the network of an IPv6 one, and anything else shortened."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:100]
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or ipaddress.IPv6Network((int(parsed), IPV6_PREFIX), strict=False))
