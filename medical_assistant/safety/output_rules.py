"""What the output watch knows: the rules, short forms and word classes of `assets/output_watch.yaml`, compiled.

Every pattern reads a sentence as `output_watch.readable` returns it. The repeats of all patterns are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from medical_assistant.errors import UserError
from medical_assistant.models.presets import ASSETS

RULES = ASSETS / "output_watch.yaml"
NEEDS = ("", "red_flag", "sources")


@dataclass(frozen=True)
class Rule:
    """What an answer must not say. `source` is the public guidance behind it."""

    name: str
    source: str
    patterns: tuple[re.Pattern[str], ...]
    exceptions: re.Pattern[str] | None
    needs: str  # one of NEEDS
    gate: re.Pattern[str] | None  # a text without it is not read with the patterns
    told: tuple[re.Pattern[str], ...]  # what the question says to be known; the violation may name it
    alone: bool  # read without the lines before
    with_list: bool  # the list under a withheld line is withheld too

    def breaks(self, text: str, told: str) -> bool:
        """Return whether normalised `text` breaks the rule. Names of diseases in `told` do not count."""
        if self.gate and not self.gate.search(text):
            return False
        if not any(pattern.search(text) for pattern in self.patterns):
            return False
        rest = self.exceptions.sub(" ; ", text) if self.exceptions else text
        found = (match for pattern in self.patterns for match in pattern.finditer(rest))
        return any((match.groupdict().get("disease") or "\n") not in told for match in found)

    def knows(self, text: str, told: str) -> bool:
        """Return whether `text` names what is in `told` already: for the learned part, which sees no disease in it."""
        return self.gate is not None and any(match.group() in text for match in self.gate.finditer(told))

    def told_by(self, question: str) -> str:
        """Return what a normalised question says to be known already."""
        return " ".join(match.group() for pattern in self.told for match in pattern.finditer(question))


@dataclass(frozen=True)
class Meaning:
    """A short form ("stop them") and the full words that the patterns know, if `after` is found in what came before."""

    find: re.Pattern[str]
    put: str
    after: re.Pattern[str]

    def spell_out(self, text: str, heard: str) -> str:
        """Return `text` with the short form in full. `heard`: the question, a line end, the sentence before."""

        def full(match: re.Match[str]) -> str:
            known = self.after.search(f"{heard} {text[: match.start()]}")
            return match.expand(self.put) if known else match.group()

        return self.find.sub(full, text)


@lru_cache(maxsize=4)
def load_rules(path: Path = RULES) -> tuple[Rule, ...]:
    """Return the compiled rules, in file order.

    `UserError`: a rule lacks a field, needs something unknown, or names a word or holds a pattern that is wrong.
    """
    content, compiled = _read(path)
    rules = []
    for fields in content["rules"]:
        name = str(fields.get("name"))
        if not fields.get("source") or not fields.get("patterns") or fields.get("needs", "") not in NEEDS:
            raise UserError(f"{path.name}: rule {name!r} wants source, patterns and needs of {NEEDS[1:]}: add them.")
        exceptions = "|".join(f"(?:{pattern})" for pattern in fields.get("except", ()))
        rules.append(
            Rule(
                name=name,
                source=str(fields["source"]),
                patterns=tuple(compiled(pattern, name) for pattern in fields["patterns"]),
                exceptions=compiled(exceptions, name) if exceptions else None,
                needs=str(fields.get("needs", "")),
                gate=compiled(fields["gate"], name) if fields.get("gate") else None,
                told=tuple(compiled(pattern, name) for pattern in fields.get("told", ())),
                alone=bool(fields.get("alone", False)),
                with_list=bool(fields.get("with_list", False)),
            )
        )
    return tuple(rules)


@lru_cache(maxsize=4)
def load_meanings(path: Path = RULES) -> tuple[Meaning, ...]:
    """Return the compiled short forms, in file order. `UserError`: as `load_rules`."""
    content, compiled = _read(path)
    return tuple(
        Meaning(compiled(fields["find"], "meanings"), fields["put"], compiled(fields["after"], "meanings"))
        for fields in content.get("meanings", ())
    )


@lru_cache(maxsize=4)
def load_classes(path: Path = RULES) -> tuple[tuple[re.Pattern[str], str], ...]:
    """Return (pattern, word that stands for all that it finds): for the learned part, to which one drug is as another.

    In file order, in which they are to be put in. `UserError`: as `load_rules`.
    """
    content, compiled = _read(path)
    return tuple((compiled(rf"\b<{name}>\b", "classes"), f" x{name.replace('_', '')} ") for name in content["classes"])


@lru_cache(maxsize=4)
def _read(path: Path) -> tuple[Mapping[str, Any], Callable[[str, str], re.Pattern[str]]]:
    """Return the content of the file, and what compiles a pattern of it; its second argument names the place."""
    content: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    words = content["words"]

    def compiled(pattern: str, where: str) -> re.Pattern[str]:
        for _ in range(5):  # words may hold words
            try:
                pattern = re.sub(r"(?<!\?P)<([a-z_]{2,20})>", lambda match: words[match[1]], pattern)
            except KeyError as error:
                raise UserError(
                    f"{path.name}: <{error.args[0]}> in {where} is no word: add it under `words`."
                ) from None
        try:
            return re.compile(pattern)
        except re.error as error:
            raise UserError(f"{path.name}: a pattern of {where} is wrong ({error}): mend it.") from None

    return content, compiled
