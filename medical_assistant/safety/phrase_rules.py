"""Load `assets/safety/triage`, a file for each language: phrases compiled to an index, rules, measures, answers.

The phrase language is described at the top of `en.yaml`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
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
    **dict(
        zip(
            "one two three four five six seven eight nine ten eleven twelve".split(),
            range(1, 13),
            strict=True,
        )
    ),
    **{"couple": 2, "few": 3, "several": 6, "dozen": 12, "fifteen": 15, "hundred": 100},
    **dict(zip("twenty thirty forty fifty sixty".split(), range(20, 70, 10), strict=True)),
}
MANY = 5  # from here a number of tablets is more than any usual single dose
WITHOUT = " without "
_DEFAULT_GAP = 3  # words that "~" may jump over
_AND_GAP = 5  # words between the two sides of "A & B"


@dataclass(frozen=True)
class Phrase:
    """`elements[i]`: ids of the words that fit there; `gaps[i]`: other words allowed before it."""

    concept: str
    elements: tuple[frozenset[int], ...]
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

    `phrases` and `idioms`: id of a first word to the phrases that start with it.
    """

    language: str
    phrases: dict[int, list[Phrase]]
    idioms: dict[int, list[Phrase]]
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
    outlasts_recovery: frozenset[str]
    outlasts_past: frozenset[str]
    outlasts_question: frozenset[str]
    outlasts_negation: frozenset[str]
    apostrophe: str  # what stands for one: "" joins "can't" to "cant", " " parts "l'estomac"
    aliases: re.Pattern[str]
    alias_of: dict[str, str]
    kinds: Callable[[str], frozenset[int]]  # ids of all phrase words that a word fits
    respell: Callable[[str], str]  # the key word that a word is one slip away from, else the word
    vocabulary: frozenset[str]  # the exact words of all phrases


class _Words:
    """Ids of the words that phrases use: exact words, prefixes ("bleed*"), NUM and MANY."""

    def __init__(self) -> None:
        self.exact: dict[str, int] = {}
        self.prefix: dict[str, int] = {}

    def id_of(self, word: str) -> int:
        table, key = (self.prefix, word[:-1]) if word.endswith("*") else (self.exact, word)
        # Odd ids are prefixes and even ids exact words, so that the two tables never share an id.
        return table.setdefault(key, 2 * len(table) + (table is self.prefix))

    def fit(self, token: str) -> frozenset[int]:
        ids = {self.exact[token]} if token in self.exact else set()
        ids |= {self.prefix[token[:n]] for n in range(2, min(len(token), 24) + 1) if token[:n] in self.prefix}
        number = float(token) if token[0].isdigit() else NUMBER_WORDS.get(token)
        if number is not None:
            ids.add(self.exact["NUM"])
            if number >= MANY:
                ids.add(self.exact["MANY"])
        return frozenset(ids)


class _Spelling:
    """Words one slip (insertion, deletion, change, swap) from a key word, by shared deletions (SymSpell)."""

    def __init__(self, targets: list[str], real_words: set[str]) -> None:
        self.real_words = real_words | set(targets)
        self.by_deletion: dict[str, list[str]] = {}
        for target in targets:
            for key in _deletions(target):
                self.by_deletion.setdefault(key, []).append(target)

    def correct(self, token: str) -> str:
        if not 4 <= len(token) <= 16 or token in self.real_words or not token.isalpha():
            return token
        near = {target for key in _deletions(token) for target in self.by_deletion.get(key, ())}
        # Four-letter words are too close to each other: "pian" is "pain", "main" is not.
        slips = (
            target
            for target in near
            if token[0] == target[0]
            and (len(target) > 4 or sorted(token) == sorted(target))
            and _one_slip(token, target)
        )
        return min(slips, default=token)


def _deletions(word: str) -> set[str]:
    return {word} | {word[:i] + word[i + 1 :] for i in range(len(word))}


def _one_slip(a: str, b: str) -> bool:
    """Whether one insertion, deletion, substitution or swap of neighbours turns `a` into `b`."""
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    rest_a, rest_b = a[start:], b[start:]
    return (
        rest_a[1:] == rest_b[1:]
        or rest_a[1:] == rest_b
        or rest_a == rest_b[1:]
        or (rest_a[:2] == rest_b[:2][::-1] and rest_a[2:] == rest_b[2:])
    )


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


def _compile(concept: str, phrase: str, sets: dict[str, list[str]], words: _Words, file: str) -> Iterator[Phrase]:
    for plain in _expand(phrase):
        elements: list[frozenset[int]] = []
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
            elements.append(frozenset(words.id_of(name) for name in names))
            gaps.append(gap)
            gap = 0
        if elements:
            yield Phrase(concept, tuple(elements), tuple(gaps))


def _index(phrases: list[Phrase]) -> dict[int, list[Phrase]]:
    index: dict[int, list[Phrase]] = {}
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
    words = _Words()
    words.id_of("NUM")
    words.id_of("MANY")
    compiled: list[Phrase] = []
    for concept, phrases in {**data["concepts"], **data["context"]}.items():
        for phrase in phrases:
            compiled += _compile(concept, str(phrase), sets, words, path.name)
    rules = [
        Rule(
            r["level"],
            r["category"],
            r["reason"],
            r["source"],
            tuple(tuple(p.strip() for p in line.split(" + ")) for line in r["when"]),
        )
        for r in data["rules"]
    ]
    _check(rules, data, path.name)
    parts = {part for rule in rules for line in rule.when for part in line}
    alias_of = {str(key): str(value) for key, value in data["spelling"]["aliases"].items()}
    # Longest first: "can not" must win over "can".
    alternatives = "|".join(re.escape(key).replace(r"\ ", r"\s") for key in sorted(alias_of, key=len, reverse=True))
    spelling = _Spelling(
        str(data["spelling"]["targets"]).split(),
        {*str(data["spelling"]["real_words"]).split(), *words.exact},
    )
    return Rules(
        language=path.stem,
        phrases=_index([phrase for phrase in compiled if phrase.concept != "idioms"]),
        idioms=_index([phrase for phrase in compiled if phrase.concept == "idioms"]),
        rules=rules,
        parts=frozenset(parts),
        measures={
            name: (
                measure["range"][0],
                measure["range"][1],
                [re.compile(pattern) for pattern in measure["patterns"]],
            )
            for name, measure in data["measures"].items()
        },
        sources=data["sources"],
        answers=data["answers"],
        context=frozenset(data["context"]),
        without=tuple((part, *part.split(WITHOUT)) for part in sorted(parts) if WITHOUT in part),
        red_flags=frozenset(
            name
            for rule in rules
            if rule.level == "emergency"
            for line in rule.when
            for part in line
            for name in names_in(part)
        ),
        function_words=frozenset(str(data.get("function_words", "")).split()),
        fillers=frozenset(str(data["fillers"]).split()),
        barriers=frozenset(str(data["barriers"]).split()),
        outlasts_recovery=frozenset(data["outlasts_recovery"]),
        outlasts_past=frozenset(data.get("outlasts_past", ())),
        outlasts_question=frozenset(data["outlasts_question"]),
        outlasts_negation=frozenset(data["outlasts_negation"]),
        apostrophe=data["spelling"].get("apostrophe", ""),
        aliases=re.compile(rf"\b(?:{alternatives})\b"),
        alias_of=alias_of,
        # 50,000 words bound the memory of a server that runs for months.
        kinds=lru_cache(maxsize=50_000)(words.fit),
        vocabulary=frozenset(words.exact),
        respell=lru_cache(maxsize=50_000)(spelling.correct),
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
        for line in rule.when:
            if all(part.startswith("not ") for part in line):
                raise UserError(f"{file}: a line of {rule.reason!r} asks for no finding: add one.")
            for part in line:
                for name in names_in(part):
                    if name not in known:
                        raise UserError(f"{file}: {name!r} in {rule.reason!r} is unknown: add a concept.")
        if rule.level == "emergency" and rule.category not in data["answers"]["first_aid"]:
            raise UserError(f"{file}: no `first_aid` text for {rule.category!r}: write it.")
