"""What a judge is asked, what it says, and what it must be able to do."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from medical_assistant.errors import EngineError

LABELS = ("entailed", "contradicted", "neither")


class JudgeDown(EngineError):
    """The judge cannot be reached or refuses to work; what it said until then has been handed over."""


@dataclass(frozen=True)
class Claim:
    """The question whether `answer`, given to `question`, contains or contradicts `statement`."""

    question: str
    answer: str
    statement: str


@dataclass(frozen=True)
class Verdict:
    """One of `LABELS`, or None with the reason why there is no verdict."""

    label: str | None
    reason: str = ""


class Judge(Protocol):
    """Anything that gives verdicts. `name` is a model's, never a path or an address."""

    name: str
    prompt_sha256: str  # hash of the prompt template

    def verdicts(self, claims: Sequence[Claim]) -> Generator[tuple[int, Verdict], None, None]:
        """Yield (index of the claim, verdict) as they come, in any order, one for each claim.

        Raises `JudgeDown`, after all verdicts at hand are yielded, when the judge has gone away.
        """
        ...
