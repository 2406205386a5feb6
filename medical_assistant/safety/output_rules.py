"""What the output filter knows: the rules, shorthands and word classes of `assets/safety/output_rules.yaml`, compiled.

Every pattern reads a sentence as `output_filter.readable` returns it. The repeats of all patterns are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from medical_assistant.errors import UserError
from medical_assistant.safety import SAFETY_ASSETS
from medical_assistant.safety.phrase_rules import read_yaml

RULES_FILE = SAFETY_ASSETS / "output_rules.yaml"
_MAX_NESTING = 5  # words that hold words


@dataclass(frozen=True)
class Rule:
    """What an answer must not say. `source` is the public guidance behind it."""

    name: str
    source: str
    patterns: tuple[re.Pattern[str], ...]
    exceptions: re.Pattern[str] | None
    needs_red_flag: bool  # holds only when the conversation has one
    prefilter: re.Pattern[str] | None  # a text without it is not read with the patterns
    known: tuple[re.Pattern[str], ...]  # what the question says to be known; the violation may name it
    ignores_context: bool  # read without the lines before
    blocks_list: bool  # the list under a blocked line is blocked too

    def is_broken_by(self, text: str, known: str) -> bool:
        """Return whether normalised `text` breaks the rule. Names of diseases in `known` do not count."""
        if self.prefilter and not self.prefilter.search(text):
            return False
        if not any(pattern.search(text) for pattern in self.patterns):
            return False
        rest = self.exceptions.sub(" ; ", text) if self.exceptions else text
        found = (match for pattern in self.patterns for match in pattern.finditer(rest))
        return any((match.groupdict().get("disease") or "\n") not in known for match in found)

    def repeats_known(self, text: str, known: str) -> bool:
        """Return whether `text` names what is in `known`: for the classifier, which sees no disease in it."""
        return self.prefilter is not None and any(match.group() in text for match in self.prefilter.finditer(known))

    def known_from(self, question: str) -> str:
        """Return what a normalised question says to be known already."""
        return " ".join(match.group() for pattern in self.known for match in pattern.finditer(question))


@dataclass(frozen=True)
class Shorthand:
    """A short form ("stop them") and the `full` words that the patterns know, if `context` is found before it."""

    short: re.Pattern[str]
    full: str
    context: re.Pattern[str]

    def expand(self, text: str, context: str) -> str:
        """Return `text` with the short form in full. `context`: the question, a line end, the sentence before."""

        def full(match: re.Match[str]) -> str:
            known = self.context.search(f"{context} {text[: match.start()]}")
            return match.expand(self.full) if known else match.group()

        return self.short.sub(full, text)


@dataclass(frozen=True)
class OutputRules:
    """The compiled file, all in file order. `word_classes`: (pattern, the word that stands for all that it finds), to
    be put in one after the other for the classifier, to which one drug is as another."""

    rules: tuple[Rule, ...]
    shorthands: tuple[Shorthand, ...]
    word_classes: tuple[tuple[re.Pattern[str], str], ...]


@lru_cache(maxsize=4)
def load_output_rules(path: Path = RULES_FILE) -> OutputRules:
    """Return the compiled file. `UserError`: a rule lacks a field, or names a word or holds a pattern that is wrong."""
    content = read_yaml(path)
    words = content["words"]

    def compiled(pattern: str, where: str) -> re.Pattern[str]:
        for _ in range(_MAX_NESTING):
            try:
                pattern = re.sub(r"(?<!\?P)<([a-z_]{2,20})>", lambda match: words[match[1]], pattern)
            except KeyError as error:
                raise UserError(
                    f"{path.name}: <{error.args[0]}> in {where} is no word: add it under `words`."
                ) from None
        try:
            return re.compile(pattern)
        except re.error as error:
            raise UserError(f"{path.name}: a pattern of {where} is wrong ({error}): correct it.") from None

    def rule(fields: Mapping[str, Any]) -> Rule:
        name = str(fields.get("name"))
        if not fields.get("source") or not fields.get("patterns"):
            raise UserError(f"{path.name}: rule {name!r} needs source and patterns: add them.")
        exceptions = "|".join(f"(?:{pattern})" for pattern in fields.get("except", ()))
        return Rule(
            name=name,
            source=str(fields["source"]),
            patterns=tuple(compiled(pattern, name) for pattern in fields["patterns"]),
            exceptions=compiled(exceptions, name) if exceptions else None,
            needs_red_flag=bool(fields.get("needs_red_flag", False)),
            prefilter=compiled(fields["prefilter"], name) if fields.get("prefilter") else None,
            known=tuple(compiled(pattern, name) for pattern in fields.get("known", ())),
            ignores_context=bool(fields.get("ignores_context", False)),
            blocks_list=bool(fields.get("blocks_list", False)),
        )

    return OutputRules(
        rules=tuple(rule(fields) for fields in content["rules"]),
        shorthands=tuple(
            Shorthand(
                compiled(fields["short"], "shorthands"), fields["full"], compiled(fields["context"], "shorthands")
            )
            for fields in content.get("shorthands", ())
        ),
        word_classes=tuple(
            (compiled(rf"\b<{name}>\b", "word_classes"), f" x{name.replace('_', '')} ")
            for name in content.get("word_classes", ())
        ),
    )
