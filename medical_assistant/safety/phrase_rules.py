"""Load `assets/safety/triage`, a file for each language: phrases compiled to an index, rules, measures, answers.

The phrase language is described at the top of `en.yaml`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from medical_assistant.errors import UserError
from medical_assistant.safety import SAFETY_ASSETS

RULES_FOLDER = SAFETY_ASSETS / "triage"
RULES_FILE = RULES_FOLDER / "en.yaml"
LEVELS = ("emergency", "urgent", "see_clinician", "routine")  # gravest first
NUMBER_WORDS = {
    **{word: n for n, word in enumerate("one two three four five six seven eight nine ten eleven twelve".split(), 1)},
    **{word: 10 * n for n, word in enumerate("twenty thirty forty fifty sixty".split(), 2)},
    **{"couple": 2, "few": 3, "several": 6, "dozen": 12, "fifteen": 15, "hundred": 100},
}
MANY = 5  # from here a number of tablets is more than any usual single dose
WITHOUT = " without "
_DEFAULT_GAP = 3  # words that "~" may jump over
_AND_GAP = 5  # words between the two sides of "A & B"
_MAX_CACHED = 50_000  # words; bounds the memory of a server that runs for months


@dataclass(frozen=True)
class Phrase:
    """`elements[i]`: the words that fit there; `gaps[i]`: other words allowed before it."""

    concept: str
    elements: tuple[frozenset[str], ...]
    gaps: tuple[int, ...]


@dataclass(frozen=True)
class Rule:
    """`when`: lines, one must hold; a line holds when all its parts do."""

    level: str
    category: str
    reason: str
    source: str
    when: tuple[tuple[str, ...], ...]


@dataclass
class Rules:
    """The compiled file of one `language` (ISO 639-1).

    `phrases` and `idioms`: a first word to the phrases that start with it.
    """

    language: str
    phrases: dict[str, list[Phrase]]
    idioms: dict[str, list[Phrase]]
    rules: list[Rule]
    parts: frozenset[str]  # of all lines of all rules
    measures: dict[str, tuple[float, float, list[re.Pattern[str]]]]
    sources: dict[str, str]
    answers: dict[str, Any]
    context: frozenset[str]
    without: tuple[tuple[str, ...], ...]  # ("a without b", a, b) for each such part of a rule
    red_flags: frozenset[str]  # concepts that some emergency rule uses
    function_words: frozenset[str]  # that tell the language of a message
    fillers: frozenset[str]
    barriers: frozenset[str]
    outlasts: dict[str, frozenset[str]]  # concepts that "recovery", "past", "question" or "negation" does not undo
    apostrophe: str  # what stands for one: "" joins "can't" to "cant", " " parts "l'estomac"
    aliases: re.Pattern[str]
    alias_of: dict[str, str]
    kinds: Callable[[str], frozenset[str]]  # all phrase words that a word fits
    respell: Callable[[str], str]  # the key word that a word is one slip away from, else the word
    vocabulary: frozenset[str]  # the exact words of all phrases


def _kinds(words: frozenset[str]) -> Callable[[str], frozenset[str]]:
    """Return what finds those of `words` (exact ones, prefixes such as "bleed*", NUM and MANY) that a token fits."""

    @lru_cache(maxsize=_MAX_CACHED)
    def kinds(token: str) -> frozenset[str]:
        found = words.intersection([token, *(f"{token[:n]}*" for n in range(2, min(len(token), 24) + 1))])
        number = float(token) if token[0].isdigit() else NUMBER_WORDS.get(token)
        if number is None:
            return found
        return found | ({"NUM", "MANY"} if number >= MANY else {"NUM"})

    return kinds


def _respell(targets: list[str], real_words: set[str]) -> Callable[[str], str]:
    """Return what finds the one of `targets` from which a word is a slip away; `real_words` are no slips."""
    by_slip: dict[str, list[str]] = {}
    for target in targets:
        for key in _slips(target):
            by_slip.setdefault(key, []).append(target)

    @lru_cache(maxsize=_MAX_CACHED)
    def respell(token: str) -> str:
        if not 4 <= len(token) <= 16 or token in real_words or token in targets or not token.isalpha():
            return token
        near = {target for key in _slips(token) for target in by_slip.get(key, ()) if target[0] == token[0]}
        # Four-letter words are too close to each other: "pian" is "pain", "main" is not.
        return min((word for word in near if len(word) > 4 or sorted(word) == sorted(token)), default=token)

    return respell


def _slips(word: str) -> set[str]:
    """Return keys that two words share when one insertion, deletion, change or swap of neighbours is between them.

    The idea of shared keys is that of SymSpell (https://github.com/wolfgarbe/SymSpell).
    """
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    missing = {f"{before}?{rest}" for before, rest in cuts}
    changed = {f"{before}?{rest[1:]}" for before, rest in cuts}
    swapped = {f"{before}{''.join(sorted(rest[:2]))}~{rest[2:]}" for before, rest in cuts}
    return missing | changed | swapped


def _expand(phrase: str) -> Iterator[list[str]]:
    """Yield the plain phrases behind "A & B" (both orders) and "word?" (with and without)."""
    if " & " in phrase:
        left, right = phrase.split(" & ", 1)
        yield from _expand(f"{left} ~{_AND_GAP} {right}")
        yield from _expand(f"{right} ~{_AND_GAP} {left}")
        return
    for choice in product(*(_variants(word) for word in phrase.split())):
        yield [word for words in choice for word in words]


def _variants(word: str) -> list[list[str]]:
    """Return what one element can be: "up?" [up] or nothing, "co|car_fumes" [co] or [car, fumes]."""
    variants: list[list[str]] = [[]] if word.endswith("?") else []
    names = word.removesuffix("?").split("|")
    single = [name for name in names if "_" not in name]
    return variants + [name.split("_") for name in names if "_" in name] + ([["|".join(single)]] if single else [])


def _compile(concept: str, phrase: str, sets: dict[str, list[str]], file: str) -> Iterator[Phrase]:
    for plain in _expand(phrase):
        elements: list[frozenset[str]] = []
        gaps: list[int] = []
        gap = 0
        for word in plain:
            if word.startswith("~"):
                gap = int(word[1:] or _DEFAULT_GAP)
                continue
            names: list[str] = []
            for name in word.split("|"):
                if name.startswith("<") and name[1:-1] not in sets:
                    raise UserError(f"{file}: {name} in {phrase!r} is no word set: add it under `sets`.")
                names += sets[name[1:-1]] if name.startswith("<") else [name]
            elements.append(frozenset(names))
            gaps.append(gap)
            gap = 0
        if elements:
            yield Phrase(concept, tuple(elements), tuple(gaps))


def _index(phrases: Iterable[Phrase]) -> dict[str, list[Phrase]]:
    index: dict[str, list[Phrase]] = {}
    for phrase in phrases:
        for first in phrase.elements[0]:
            index.setdefault(first, []).append(phrase)
    return index


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the content of a rules file."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader is ten times faster
    content: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), loader)
    return content


@lru_cache(maxsize=1)
def load_languages(folder: Path = RULES_FOLDER) -> list[Rules]:
    """Return the compiled rules of every language, English first. Raises as `load_rules`."""
    return [load_rules(path) for path in sorted(folder.glob("*.yaml"), key=lambda path: (path.stem != "en", path.stem))]


@lru_cache(maxsize=16)
def load_rules(path: Path = RULES_FILE) -> Rules:
    """Return the compiled rules of one language.

    `UserError`: the file names a concept, set or source that it lacks.
    """
    data = read_yaml(path)
    sets = {name: str(words).split() for name, words in data["sets"].items()}
    phrases = [
        compiled
        for concept, texts in {**data["concepts"], **data["context"]}.items()
        for text in texts
        for compiled in _compile(concept, str(text), sets, path.name)
    ]
    rules = [
        Rule(**{**fields, "when": tuple(tuple(map(str.strip, line.split(" + "))) for line in fields["when"])})
        for fields in data["rules"]
    ]
    _check(rules, data, path.name)
    parts = {part for rule in rules for line in rule.when for part in line}
    urgent_parts = {part for rule in rules if rule.level == "emergency" for line in rule.when for part in line}
    words = frozenset().union(*(element for phrase in phrases for element in phrase.elements))
    vocabulary = frozenset(word for word in words if not word.endswith("*"))
    spelling = data["spelling"]
    alias_of = {str(key): str(value) for key, value in spelling["aliases"].items()}
    # Longest first: "can not" must win over "can".
    alternatives = "|".join(re.escape(key).replace(r"\ ", r"\s") for key in sorted(alias_of, key=len, reverse=True))
    return Rules(
        language=path.stem,
        phrases=_index(phrase for phrase in phrases if phrase.concept != "idioms"),
        idioms=_index(phrase for phrase in phrases if phrase.concept == "idioms"),
        rules=rules,
        parts=frozenset(parts),
        measures={
            name: (*measure["range"], [re.compile(pattern) for pattern in measure["patterns"]])
            for name, measure in data["measures"].items()
        },
        sources=data["sources"],
        answers=data["answers"],
        context=frozenset(data["context"]),
        without=tuple((part, *part.split(WITHOUT)) for part in sorted(parts) if WITHOUT in part),
        red_flags=frozenset(name for part in urgent_parts for name in names_in(part)),
        function_words=frozenset(str(data.get("function_words", "")).split()),
        fillers=frozenset(str(data["fillers"]).split()),
        barriers=frozenset(str(data["barriers"]).split()),
        outlasts={
            cue: frozenset(data.get(f"outlasts_{cue}", ())) for cue in ("recovery", "past", "question", "negation")
        },
        apostrophe=spelling.get("apostrophe", ""),
        aliases=re.compile(rf"\b(?:{alternatives})\b"),
        alias_of=alias_of,
        kinds=_kinds(words),
        respell=_respell(str(spelling["targets"]).split(), {*str(spelling["real_words"]).split(), *vocabulary}),
        vocabulary=vocabulary,
    )


def names_in(part: str) -> list[str]:
    """Return the concepts or the measure that one part of a rule names."""
    if WITHOUT in part:
        return part.split(WITHOUT)
    return [name.split()[0] for name in part.removeprefix("not ").split("|")]


def _check(rules: list[Rule], data: dict[str, Any], file: str) -> None:
    known = set(data["concepts"]) | set(data["measures"])
    for rule in rules:
        if rule.source not in data["sources"]:
            raise UserError(f"{file}: source {rule.source!r} of {rule.reason!r} is unknown: add it.")
        if rule.level == "emergency" and rule.category not in data["answers"]["first_aid"]:
            raise UserError(f"{file}: no `first_aid` text for {rule.category!r}: write it.")
        for line in rule.when:
            if all(part.startswith("not ") for part in line):
                raise UserError(f"{file}: a line of {rule.reason!r} asks for no finding: add one.")
            for name in {name for part in line for name in names_in(part)} - known:
                raise UserError(f"{file}: {name!r} in {rule.reason!r} is unknown: add a concept.")
