"""How much one client may ask: answers at once and a minute. Addresses are never kept, only salted hashes."""

from __future__ import annotations

import hashlib
import ipaddress
import math
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from medical_assistant.errors import UserError

WINDOW_S = 60.0
MAX_CLIENTS = 4_096  # remembered at most, 2 MB; then the one that asked longest ago is forgotten
IPV6_PREFIX = 64  # one household or phone has this whole network (RFC 6177), so its addresses are one client


class LimitError(UserError):
    """A client asks too much. The text names the limit and says when to try again."""


@dataclass
class _Client:
    running: int = 0
    starts_s: list[float] = field(default_factory=list)  # of the last WINDOW_S, oldest first


class ClientLimits:
    """At most `concurrent` answers at once and `per_minute` in any 60 s for each client. Thread-safe.

    `clock` returns seconds. Where it jumps back, earlier answers count as given at that moment: nobody waits
    for more than 60 s. Raises `UserError` for a limit below 1.
    """

    def __init__(
        self,
        concurrent: int = 2,
        per_minute: int = 20,
        clock: Callable[[], float] = time.monotonic,
        max_clients: int = MAX_CLIENTS,
    ) -> None:
        if concurrent < 1 or per_minute < 1:
            raise UserError("A client's limits are below 1: use 1 or more answers at once and a minute.")
        self.concurrent = concurrent
        self.per_minute = per_minute
        self._clock = clock
        self._max_clients = max_clients
        self._clients: OrderedDict[str, _Client] = OrderedDict()  # the one that asked longest ago first
        # Reentrant: the garbage collector may end a dropped answer in a thread that holds the lock.
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """Return the number of remembered clients."""
        return len(self._clients)

    @contextmanager
    def enter(self, client: str) -> Iterator[None]:
        """Count one answer of `client`, a key of `ClientKeys`, for as long as the block runs.

        Raises `LimitError` where the client has reached a limit; a refused question is not counted.
        """
        entry = self._start(client)
        try:
            yield
        finally:
            with self._lock:
                entry.running -= 1

    def _start(self, client: str) -> _Client:
        with self._lock:
            now_s = self._clock()
            entry = self._clients.pop(client, None) or _Client()
            self._forget_idle(now_s)
            self._clients[client] = entry
            _drop_old(entry, now_s)
            if entry.running >= self.concurrent:
                raise LimitError(
                    f"The limit is {_count(self.concurrent, 'answer')} at a time: "
                    "wait until one is complete, or stop it, then ask again."
                )
            if len(entry.starts_s) >= self.per_minute:
                wait_s = max(1, math.ceil(entry.starts_s[0] + WINDOW_S - now_s))
                raise LimitError(
                    f"The limit is {_count(self.per_minute, 'question')} a minute: "
                    f"ask again in {_count(wait_s, 'second')}."
                )
            entry.running += 1
            entry.starts_s.append(now_s)
            return entry

    def _forget_idle(self, now_s: float) -> None:
        """Forget whoever asked nothing for a minute; to make room for one more, whoever asked longest ago."""
        for client, entry in list(self._clients.items()):
            _drop_old(entry, now_s)
            if entry.starts_s and len(self._clients) < self._max_clients:
                break  # all that follow asked later
            if not entry.running:
                del self._clients[client]


def _drop_old(entry: _Client, now_s: float) -> None:
    """Keep the starts of the last minute. A start after `now_s` means that the clock jumped back: it becomes now."""
    starts_s = [min(start_s, now_s) for start_s in entry.starts_s]
    entry.starts_s = [start_s for start_s in starts_s if now_s - start_s < WINDOW_S]


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
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(parsed), IPV6_PREFIX), strict=False))
    return str(parsed)
