"""What one message says: findings and numbers, less what is denied, only asked about, past or an idiom.

`PreparedText` holds a message with its normal forms (Unicode tricks and contractions undone) and its readings, each
made once. `_read` works in three steps: `_sentences` (words, soft breaks, spelling), `_find` (phrases of the rule
file), `_findings` (context). Sentences are cut at `MAX_SENTENCE_WORDS`, every phrase has a bounded reach and all
regular expressions have bounded repeats, so the time is linear in the length of the message.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from functools import cached_property

from medical_assistant.safety.phrase_rules import NUMBER_WORDS, Phrase, Rules, load_languages

MAX_SENTENCE_WORDS = 80
_OVERLAP = 12  # words that two cuts of one long sentence share, so that no phrase is lost at the cut
_MAX_CHARACTERS = 100_000  # after Unicode decomposition, which can make a text 18 times longer
_NEAR, _FAR, _PAST = 4, 10, 6  # words that "no", "denies", "history of" reach forward

_HOMOGLYPHS = str.maketrans(
    "аеорсухіјѕһԁӏкмтвнԛԝαοριντυχεηκβßıᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ",
    "aeopcyxijshdlkmtbhqwaopivtuxenkbsiabcdefghijklmnoprstuvwyz",
)
_LEET = str.maketrans("01345@$", "oieasas")
_QUOTES = re.compile("['`\u00b4\u2018\u2019\u201b\u02bc\u2032\uff07]")
_DASHES = re.compile("[\u2010-\u2015\u2212]")
_SPACED_LETTERS = re.compile(r"(?<![a-z])[a-z](?:[ .\-_*][a-z]){3,40}(?![a-z])")
_LEET_IN_WORD = re.compile(r"(?<=[a-z])[01345@$](?=[a-z])")
_STRETCHED = re.compile(r"([a-z])\1{2,}")
_SENTENCE_END = re.compile(r"[.!?\u3002\u061f\uff1f]+(?=\s|$|[\"')])|[;\r]|\n\s*\n|\n\s*[-*\u2022]")
_TOKEN = re.compile(r"[a-z]+|\d+(?:\.\d+)?|[,:()\u2014\n]|(?<= )- ")
_NUMBER_WORD = re.compile(
    r"\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|one(?= (?:month|week|day|year)))\b"
)
_DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d{1,2}(?!\d))")
_CLAUSE_ENDS = frozenset((",", "and", "but", "so", "because"))


@dataclass(frozen=True)
class Reading:
    """One message, or several joined.

    `concepts`: names from the rule file. `measures`: (name with its unit, value). `follows_up`: whether it
    may continue an earlier message. `over`: whether it says that all is well again. `function_words`: how many words
    of the message are function words of the language whose rules read it, 0 where they did not.
    """

    concepts: frozenset[str] = frozenset()
    measures: tuple[tuple[str, float], ...] = ()
    follows_up: bool = False
    over: bool = False
    function_words: int = 0

    def join(self, other: Reading) -> Reading:
        """Return the findings of both."""
        return Reading(self.concepts | other.concepts, self.measures + other.measures)


class PreparedText:
    """A text as it was written (`raw`), and what follows from it: normal forms and readings, each made once.

    Who reads a text in several places makes one of these and passes it on.
    """

    def __init__(self, raw: str) -> None:
        self.raw = raw
        self._without_tricks: dict[str, str] = {}  # by what stands for an apostrophe
        self._normal_forms: dict[str, str] = {}  # by rules
        self._readings: dict[str, Reading] = {}  # by rules

    @classmethod
    def of(cls, text: str | PreparedText) -> PreparedText:
        """Return `text` itself when it is prepared already; never raises."""
        return text if isinstance(text, PreparedText) else cls(str(text))

    @cached_property
    def readings(self) -> tuple[Reading, ...]:
        """The findings by the rules of each language, in the order of `load_languages`.

        English reads everything: a forged frame may be in any language. Each other language reads only what is in it: a
        message with function words of it, no fewer than English ones, or with none of English. Borrowed and misspelt
        words of an English message ("durring pregnency") look like findings of other languages.
        """
        words = re.findall(r"[a-z]+", self._lower_case)
        counts = [sum(word in rules.function_words for word in words) for rules in load_languages()]
        return tuple(
            replace(self.reading(rules), function_words=count) if count >= counts[0] else Reading()
            for rules, count in zip(load_languages(), counts, strict=True)
        )

    @cached_property
    def in_english(self) -> bool:
        """Whether most letters are Latin ones, and no other language has more function words in it than English."""
        letters = [letter for letter in self.raw if letter.isalpha()]
        latin = sum(unicodedata.name(letter, "").startswith("LATIN") for letter in letters)
        english, *others = (reading.function_words for reading in self.readings)
        return 2 * latin >= len(letters) and english >= max(others, default=0)

    def reading(self, rules: Rules) -> Reading:
        """Return the findings by `rules`, in whatever language the text is."""
        if rules.language not in self._readings:
            self._readings[rules.language] = _read(self.normal_form(rules), rules)
        return self._readings[rules.language]

    def normal_form(self, rules: Rules) -> str:
        """Return lower-case text with invisible characters gone, look-alikes and contractions resolved."""
        if rules.language not in self._normal_forms:
            text = self._text_without_tricks(rules.apostrophe)
            self._normal_forms[rules.language] = rules.aliases.sub(
                lambda match: rules.alias_of[re.sub(r"\s+", " ", match.group())], text
            )
        return self._normal_forms[rules.language]

    def _text_without_tricks(self, apostrophe: str) -> str:
        if apostrophe not in self._without_tricks:
            text = _DASHES.sub("-", _QUOTES.sub(apostrophe, self._lower_case.translate(_HOMOGLYPHS)))
            text = _LEET_IN_WORD.sub(lambda match: match.group().translate(_LEET), text)
            text = _SPACED_LETTERS.sub(lambda match: re.sub(r"[^a-z]", "", match.group()), text)
            text = _STRETCHED.sub(r"\1", text)
            text = re.sub(r"\bw/o\b", "without", text)
            self._without_tricks[apostrophe] = re.sub(r"(?<=[a-z])[-/](?=[a-z])", " ", text)
        return self._without_tricks[apostrophe]

    @cached_property
    def _lower_case(self) -> str:
        """The text in lower case, compatibility characters (NFKD) as plain ones, without marks and invisible ones."""
        text = self.raw[:_MAX_CHARACTERS]
        if not text.isascii():
            text = unicodedata.normalize("NFKD", text)[:_MAX_CHARACTERS]
            text = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Mn", "Me"))
        return text.lower()


def _read(text: str, rules: Rules) -> Reading:
    """Return the findings of one normalised text. Equal sentences are read once."""
    concepts: set[str] = set()
    measures: list[tuple[str, float]] = []
    follows = resolved = asks = False
    exam = first_person = fiction = False
    for sentence in dict.fromkeys(_SENTENCE_END.split(text)):
        in_general = True
        for tokens in _sentences(sentence, rules):
            spans = _find(tokens, rules)
            found, general, over = _findings(tokens, spans, rules)
            fiction |= "fiction" in spans
            # "Writing a novel where he has a stroke" is no emergency, "for a novel: I have chest pain" may be one.
            cue = max((end for _, end in spans.get("fiction", ())), default=0)
            if fiction and all(start < cue for start, _ in spans.get("first_person", ())):
                found &= rules.outlasts["question"]
            if "all_clear" in spans and "not_resolved" not in spans:
                concepts &= rules.outlasts["recovery"]
            concepts |= found
            # Per sentence: a kitchen in the next sentence does not explain a cut in this one.
            concepts |= {part for part, a, b in rules.without if a in found and b not in found}
            follows |= not general and ("follow_up" in spans or not found.isdisjoint(rules.red_flags))
            asks |= general
            resolved |= over
            exam |= "exam" in spans
            first_person |= "first_person" in spans
            in_general &= general
        if not in_general:
            measures += _measure(sentence, rules)
    if exam and not first_person:
        return Reading()
    follows |= bool(measures) and not asks
    return Reading(frozenset(concepts), tuple(dict.fromkeys(measures)), follows and not resolved, resolved)


def _sentences(sentence: str, rules: Rules) -> list[list[str]]:
    """Return the different runs of at most `MAX_SENTENCE_WORDS` words.

    Each starts with "^" and ends with "$"; "," stands for any soft break.
    """
    words = [rules.respell(token) if token[0].isalnum() else "," for token in _TOKEN.findall(sentence)]
    cuts = dict.fromkeys(
        tuple(words[i : i + MAX_SENTENCE_WORDS])
        for i in range(0, max(1, len(words) - _OVERLAP), MAX_SENTENCE_WORDS - _OVERLAP)
    )
    return [["^", *cut, "$"] for cut in cuts]


_Span = tuple[int, int]  # first word, one past the last


def _find(tokens: list[str], rules: Rules) -> dict[str, list[_Span]]:
    """Return for each concept where it stands in `tokens`. Words inside idioms are read as nothing."""
    kinds = [rules.kinds(token) for token in tokens]
    for start, end in _match(kinds, tokens, rules.idioms, rules).get("idioms", ()):
        for i in range(start, end):
            kinds[i] = frozenset()
    return _match(kinds, tokens, rules.phrases, rules)


def _match(
    kinds: list[frozenset[str]], tokens: list[str], index: dict[str, list[Phrase]], rules: Rules
) -> dict[str, list[_Span]]:
    present = frozenset().union(*kinds)
    spans: dict[str, list[_Span]] = {}
    for kind in present & index.keys():
        starts = [i for i, at in enumerate(kinds) if kind in at]
        for phrase in index[kind]:
            if all(not element.isdisjoint(present) for element in phrase.elements):
                for start in starts:
                    end = _reach(phrase, 1, start + 1, kinds, tokens, rules)
                    if end:
                        spans.setdefault(phrase.concept, []).append((start, end))
    return spans


def _reach(phrase: Phrase, element: int, at: int, kinds: list[frozenset[str]], tokens: list[str], rules: Rules) -> int:
    """Return the end of `phrase` when its elements from number `element` on follow word `at`, else 0."""
    if element == len(phrase.elements):
        return at
    gap = phrase.gaps[element]
    for position in range(at, len(tokens)):
        if not phrase.elements[element].isdisjoint(kinds[position]):
            end = _reach(phrase, element + 1, position + 1, kinds, tokens, rules)
            if end:
                return end
        word = tokens[position]
        if word not in rules.fillers:
            gap -= 1
        if gap < 0 or word in rules.barriers:
            return 0
    return 0


def _findings(tokens: list[str], spans: dict[str, list[_Span]], rules: Rules) -> tuple[set[str], bool, bool]:
    """Return (concepts that are present, whether it asks in general, whether it says that it is over)."""
    ask_from = _question_start(tokens, spans)
    resolved = 0 if spans.get("not_resolved") else max((start for start, _ in spans.get("resolved", ())), default=0)
    if spans.get("present"):
        past: list[_Span] = []
    elif spans.get("past_whole") and not spans.get("present_clause"):
        past = [(0, len(tokens))]
    else:
        past = [_clause(place, tokens) for place in spans.get("past", ())]
        # "A fit at 18 months and he is five now": the second clause does not make the first one present.
        now = [place[0] for place in spans.get("present_clause", ())]
        past = [(start, end) for start, end in past if not any(start <= place < end for place in now)]
    found = set()
    for concept, places in spans.items():
        if concept in rules.context:
            continue
        for place in places:
            # "The chest pain is gone but my arm is numb": what is said before the cue is over.
            if place[0] < resolved and concept not in rules.outlasts["recovery"]:
                continue
            if concept not in rules.outlasts["past"] and any(start <= place[0] < end for start, end in past):
                continue
            if ask_from is not None and place[0] >= ask_from and concept not in rules.outlasts["question"]:
                continue
            if concept not in rules.outlasts["negation"] and _is_denied(place, tokens, spans):
                continue
            found.add(concept)
            break
    return found, ask_from is not None, resolved > 0


def _clause(place: _Span, tokens: list[str]) -> _Span:
    """Return the words of the clause around `place`."""
    start, end = place
    while start > 0 and tokens[start - 1] not in _CLAUSE_ENDS:
        start -= 1
    while end < len(tokens) and tokens[end] not in _CLAUSE_ENDS:
        end += 1
    return start, end


def _question_start(tokens: list[str], spans: dict[str, list[_Span]]) -> int | None:
    """Return the word from which the sentence asks in general, None when it is about somebody now."""
    if spans.get("help_request"):
        return None
    cues = [span[0] for span in spans.get("information", ())]
    if "information_after" in spans and "present_clause" not in spans:
        cues.append(0)
    impersonal = {i for span in spans.get("impersonal", ()) for i in range(*span)}
    personal = [a for a, b in spans.get("personal", ()) if not impersonal.intersection(range(a, b))]
    last = max(personal, default=-1)
    return min((cue for cue in cues if cue > last), default=None)


def _is_denied(place: _Span, tokens: list[str], spans: dict[str, list[_Span]]) -> bool:
    """Whether a negation (or "history of") reaches the words at `place`.

    The method is NegEx (Chapman 2001, doi:10.1006/jbin.2001.1029) with ends at clause words and commas.
    """
    exceptions = spans.get("negation_exception", ())
    ends = spans.get("negation_end", ())
    lists = [a for a, _ in spans.get("negation_list", ())]
    for cue, reach, over_commas in (
        ("negation_near", _NEAR, False),
        ("negation_far", _FAR, True),
        ("past_near", _PAST, False),
        ("hypothetical", _PAST, False),
        ("third_party_mention", _FAR, False),
    ):
        for start, end in spans.get(cue, ()):
            if start >= place[0] or end >= place[1] or any(a <= start < b for a, b in exceptions):
                continue
            if any(end <= a < place[0] for a, _ in ends):
                continue
            # "I read about strokes and his face droops": what follows a word for a person is no mention.
            if cue == "third_party_mention" and any(end <= a <= place[0] for a, _ in spans.get("personal", ())):
                continue
            between = tokens[end : place[0] + (tokens[place[0]] == ",")]
            commas = between.count(",")
            # "No fever, cough or rash" goes on to the "or"; "no stool or wind, vomiting" ends at the comma.
            listed = any(a > end and "," not in tokens[a : place[0]] for a in lists)
            if commas and not (over_commas or listed):
                continue
            if len(between) - commas <= (_FAR + 4 if listed else reach):
                return True
    return any(0 <= a - place[1] <= 1 for a, _ in spans.get("denied_after", ()))


def _measure(sentence: str, rules: Rules) -> list[tuple[str, float]]:
    """Return the readings in one sentence in the unit that their name states."""
    sentence = _NUMBER_WORD.sub(lambda match: str(NUMBER_WORDS[match.group()]), sentence)
    if rules.language != "en":
        sentence = _DECIMAL_COMMA.sub(".", sentence)
    readings = []
    for name, (low, high, patterns) in rules.measures.items():
        for pattern in patterns:
            for match in pattern.finditer(sentence):
                value = float(match.group(1))
                if name == "temperature_c" and value > 80:
                    value = (value - 32) * 5 / 9
                # Home meters end at about 34 mmol/l (600 mg/dl): a smaller bare number is in mmol/l.
                if name == "glucose_mg_dl" and value <= 34 and "mg" not in sentence:
                    value *= 18
                if low <= value <= high:
                    readings.append((name, round(value, 2)))
    return readings
