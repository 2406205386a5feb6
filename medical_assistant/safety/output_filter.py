"""The output filter: every sentence of an answer is checked before it is shown, one that breaks a rule is blocked.

    output_filter = OutputFilter(question, red_flags)
    for token in tokens:
        shown += output_filter.feed(token.text)
    shown += output_filter.finish()

What breaks a rule is data (`assets/safety/output_rules.yaml`), each rule with its public source. The output classifier,
a logistic regression for each of `KINDS`, knows wording that no pattern foresaw; it may only block more, under the name
and source of a rule. Three parts: `_next_end` cuts the stream into sentences, `_broken_rule` reads one, the class joins
the two. Where the stream is cut depends on the text alone, never on how it arrived. Windows and repeats are bounded, so
the time is linear in the text.

It reads words, not meaning, in English, one sentence at a time; what "it" and "them" mean it takes from the question
and the sentence before. It comes after the prompt and the rules that read the question, and proves no answer safe.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from medical_assistant.safety import SAFETY_ASSETS, hashed_classifier
from medical_assistant.safety.hashed_classifier import HashedClassifier
from medical_assistant.safety.output_rules import Rule, load_output_rules
from medical_assistant.safety.phrase_rules import load_rules
from medical_assistant.safety.text_reading import PreparedText

CLASSIFIER_FILE = SAFETY_ASSETS / "output_classifier.json"
KINDS = ("delay_of_care", "medicine_change", "diagnosis_as_fact")  # names of rules
ASSERTED = "diagnosis_as_fact"  # a question back asserts none
MIN_WORDS = 3  # the classifier reads no shorter sentences: "Stop it." is the rules' business
MAX_SENTENCE_CHARACTERS = 400
PART_CHARACTERS = 300  # of a longer sentence; it is read with the 100 that follow, so that no phrase hides in the cut
_CONTEXT_CHARACTERS = 200  # of the lines before that go on in this one
_MAX_READ_CHARACTERS = 800  # one character can decompose into 18

# The lookahead wants to see what follows: with less text the cut is not known yet. "[1]" belongs to what it proves.
_NEXT = r"(?=[^\s\[]|\[[^\d]|\[\d{1,3}[^\d\]])"
_STOP = r"[.!?\u2026]"
_CLOSING_MARKS = r"""["'\u201d\u2019)\]*_]{0,4}"""
_END = re.compile(
    rf"""{_STOP}{_CLOSING_MARKS}(?:[ ]?\[\d{{1,3}}\]){{0,6}}[^\S\r\n]+{_NEXT}"""
    r"|[^\S\r\n]*[\r\n]\s*(?=\S)"
    r"|[\u3002\uff01\uff1f]\s*(?=\S)"
)
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'*])(?:e\.g|i\.e|a\.m|p\.m|dr|mr|mrs|ms|prof|st|vs|approx|fig|incl|ca|cf|resp|u\.s|u\.k|ph\.d|m\.d)\.$",
    re.IGNORECASE,
)
_LIST_NUMBER = re.compile(r"\s*[*_]{0,2}\d{1,3}\.")
_LIST_MARK = re.compile(r"\s*(?:[-*+\u2022\u2013]|\(?\d{1,3}[.)])\s+")
_LINE_MARK = re.compile(rf"(?:{_LIST_MARK.pattern}|\s*[#>]{{1,6}}\s+){{1,3}}")
_MARKDOWN = re.compile(r"[*_`~]{1,3}")
_HEADING_END = re.compile(r":[*_ ]{0,4}$")
_ENDS_WITH_STOP = re.compile(rf"(?:{_STOP}|\u3002){_CLOSING_MARKS}$")


class OutputFilter:
    """Checks one answer while it streams. `blocked`: the name of the rule for each sentence not shown, no text.

    `red_flags`: findings in the conversation that want care soon; with any, wording that delays care is blocked.
    `use_classifier`: False reads with the rules alone, to measure what the classifier adds.
    """

    def __init__(self, question: str, red_flags: Sequence[str] = (), use_classifier: bool = True) -> None:
        rules = load_output_rules()
        self.blocked: list[str] = []
        self._question = readable(question)
        self._rules = [
            (rule, rule.known_from(self._question)) for rule in rules.rules if red_flags or not rule.needs_red_flag
        ]
        self._shorthands = rules.shorthands
        self._classifiers = load_output_classifier() if use_classifier else {}
        self._before = ""  # the sentence before, shown or not
        self._buffer = ""
        self._at_line_start = True
        self._after_blank_line = False
        self._lead = ""  # the line that ended with ":" and opened this list
        self._lead_has_items = False
        self._unfinished = ""  # lines before that ended without a full stop and go on here
        self._in_blocked_sentence = False  # the rest of a long sentence, after a part of it was blocked

    def feed(self, new_text: str) -> str:
        """Return what may be shown now that `new_text` has arrived: whole sentences that were checked."""
        self._buffer += new_text
        shown: list[str] = []
        start = 0
        while True:
            window = self._buffer[start : start + MAX_SENTENCE_CHARACTERS + 1]
            end, whole = _next_end(window)
            if not end:
                break
            shown.append(self._pass(window[:end], window[:MAX_SENTENCE_CHARACTERS] if not whole else "", whole))
            start += end
        self._buffer = self._buffer[start:]
        return "".join(shown)

    def finish(self) -> str:
        """Return what may be shown of the rest, at the end of the answer."""
        rest, self._buffer = self._buffer, ""
        return self._pass(rest, "", True) if rest else ""

    def _pass(self, sentence: str, window: str, whole: bool) -> str:
        """Return `sentence` if it may be shown, else its line ends. `window`: with what follows, for a part."""
        body = sentence.rstrip()
        line_ends = re.sub(r"\A[^\r\n]+", "", sentence[len(body) :])
        marked = self._at_line_start and _LIST_MARK.match(sentence) is not None
        if self._at_line_start and not marked and (self._after_blank_line or self._lead_has_items):
            self._lead, self._lead_has_items = "", False
        if marked or self._after_blank_line:
            self._unfinished = ""
        self._lead_has_items |= marked and bool(self._lead)

        rule = None if self._in_blocked_sentence else self._broken_rule(window or body)
        if rule:
            self.blocked.append(rule.name)
        hidden = self._in_blocked_sentence or rule is not None
        self._in_blocked_sentence = hidden and not whole
        self._remember(body, line_ends, marked or whole and not line_ends, rule, hidden)
        if not hidden:
            self._at_line_start = bool(line_ends) or (self._at_line_start and not body)
            return sentence
        if self._at_line_start:
            return ""
        self._at_line_start = bool(line_ends)
        return line_ends

    def _remember(self, body: str, line_ends: str, closed: bool, rule: Rule | None, hidden: bool) -> None:
        """Keep what the next lines are read with. `closed`: the text after `body` does not go on with it."""
        self._after_blank_line = line_ends.replace("\r\n", "\n").replace("\r", "\n").count("\n") > 1
        if line_ends and _HEADING_END.search(body):
            self._lead = body[-_CONTEXT_CHARACTERS:] if not hidden or (rule and rule.blocks_list) else ""
            self._lead_has_items, self._unfinished = False, ""
            self._after_blank_line = False  # "Do not:", a blank line, then the list
        elif hidden or closed or _ENDS_WITH_STOP.search(body):
            self._unfinished = ""
        else:
            self._unfinished = f"{self._unfinished} {body}"[-_CONTEXT_CHARACTERS:]

    def _broken_rule(self, text: str) -> Rule | None:
        """Return the first rule that `text` breaks, else one whose name the classifier gives it."""
        alone = readable(text)
        if not alone:
            return None
        full = self._full_text(alone)
        for rule, known in self._rules:
            if rule.is_broken_by(alone if rule.ignores_context else full, known):
                return rule
        kinds = kinds_of(full, self._classifiers)
        found = (rule for rule, known in self._rules if rule.name in kinds and not rule.repeats_known(full, known))
        return next(found, None)

    def _full_text(self, alone: str) -> str:
        """Return a readable sentence with the lines that open it and shorthands in full; keep it for the next one."""
        full = " ".join(filter(None, [readable(self._lead), readable(self._unfinished), alone]))
        for shorthand in self._shorthands:
            full = shorthand.expand(full, f"{self._question}\n{self._before}")
        self._before = alone
        return full


def _next_end(window: str) -> tuple[int, bool]:
    """Return where the first sentence of `window` ends, blanks after it included, and whether it is whole.

    0 while that cannot be known yet.
    """
    for match in _END.finditer(window):
        end = match.end()
        if not match.group().strip():  # a line end
            return end, True
        before = window[: match.start() + 1]
        if not (window[end].islower() or _ABBREVIATION.search(before[-12:]) or _LIST_NUMBER.fullmatch(before)):
            return end, True
    if len(window) <= MAX_SENTENCE_CHARACTERS:
        return 0, False
    blank = max(window.rfind(" ", PART_CHARACTERS // 2, PART_CHARACTERS), window.rfind("\n", 0, PART_CHARACTERS))
    return (blank + 1 if blank > 0 else PART_CHARACTERS), False


def readable(text: str) -> str:
    """Return `text` as the patterns want it: normalised, without marks of Markdown and of a list item."""
    marked = _LINE_MARK.match(text)
    text = PreparedText(text[marked.end() if marked else 0 :]).normal_form(load_rules())
    return " ".join(_MARKDOWN.sub("", text).split())[:_MAX_READ_CHARACTERS]


Classifiers = dict[str, tuple[HashedClassifier, float]]  # by kind; a sentence of that score (log odds) is blocked


@lru_cache(maxsize=4)
def load_output_classifier(path: Path = CLASSIFIER_FILE) -> Classifiers:
    """Return the trained classifiers. `UserError`: the file is missing or not one that the training wrote."""

    def build(data: Any) -> Classifiers:
        return {
            kind: (hashed_classifier.from_json(data["kinds"][kind]), float(data["kinds"][kind]["threshold"]))
            for kind in KINDS
        }

    return hashed_classifier.read_classifier(path, build, "output")


def kinds_of(text: str, classifiers: Classifiers) -> list[str]:
    """Return those of `KINDS` that a sentence, as the filter reads it, is taken to be; most sentences are none."""
    if not classifiers or len(hashed_classifier.words_in(text)) < MIN_WORDS:
        return []
    found = feature_groups(text)
    return [
        kind
        for kind, (classifier, threshold) in classifiers.items()
        if classifier.score(*found) >= threshold and not (kind == ASSERTED and text.endswith("?"))
    ]


def feature_groups(text: str) -> tuple[set[int], set[int]]:
    """Return the buckets of the words of a sentence, and of its words and pairs with a class in place of each drug,
    disease and so on."""
    words = hashed_classifier.words_in(text)
    for pattern, name in load_output_rules().word_classes:
        text = pattern.sub(name, text)
    classed = ["^", *hashed_classifier.words_in(text), "$"]
    pairs = (f"{first} {second}" for first, second in pairwise(classed))
    return hashed_classifier.word_buckets(words), {
        hashed_classifier.bucket_of(f"~{piece}") for piece in (*classed, *pairs)
    }
