"""What a disguised message says in plain words: the other ways in which one message can be read.

`decoded_forms(message, rules)` returns the message and what comes out of undoing base64, hexadecimal, percent and HTML
codes, rot13, reversed text, letters set apart, and digits for letters. `text_reading.PreparedText` undoes look-alike
and invisible characters in each. All steps are linear in the length of the message.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
import urllib.parse

from medical_assistant.safety.phrase_rules import Rules

_MAX_FORMS = 8
_MAX_CODED_CHARACTERS = 8_000
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}")
_HEXADECIMAL = re.compile(r"(?:[0-9a-fA-F]{2}[ :]?){12,}")
_SPACED = re.compile(r"(?<![a-z])(?:[a-z0-9][ .\-_*/|]{1,3}){5,}[a-z0-9](?![a-z])", re.IGNORECASE)
_SPACES = re.compile(r"[^\S\n]+")
_WIDE_GAP = re.compile(r" {2,}| ?[/|] ?")
_LEET_WORD = re.compile(r"(?<![\w@$!])(?=[\w@$!]*[a-zA-Z])(?=[\w@$!]*[0134578@$!])[\w@$!]+")
_LEET = str.maketrans("0134578@$!", "oieastbasi")
_WORD = re.compile(r"[a-z]+")
# The commonest words of a request in rot13 and backwards; two of them are no accident.
_COMMON = "how to the my with without and for you can what of a i me make give tell from is in someone".split()
_ROT13_WORDS = frozenset(codecs.encode(word, "rot13") for word in _COMMON if len(word) > 1) - {"is", "in", "of", "me"}
_REVERSED_WORDS = frozenset(word[::-1] for word in _COMMON if len(word) > 1) - {"is", "in", "of", "me"}
_LONGEST_WORD = 18


def decoded_forms(message: str, rules: Rules) -> list[str]:
    """Return `message` and its decoded forms, at most `_MAX_FORMS`, none of them twice."""
    found = [message, *_decoded(message)]
    for text in found[:3]:
        words = _WORD.findall(text.lower())
        if sum(word in _ROT13_WORDS for word in words) > 1:
            found.append(codecs.encode(text, "rot13"))
        if sum(word in _REVERSED_WORDS for word in words) > 1:
            found.append(text[::-1])
        if _SPACED.search(text):
            found.append(_SPACED.sub(lambda match: _close_up(match.group(), rules), text))
        if _LEET_WORD.search(text):
            found.append(_unleet(text))
    # Aliases and phrases are written with single spaces.
    return list(dict.fromkeys(_SPACES.sub(" ", text) for text in found))[:_MAX_FORMS]


def _decoded(message: str) -> list[str]:
    """Return the texts that stand in the message as base64, hexadecimal, percent or HTML codes."""
    texts = []
    for match in list(_BASE64.finditer(message))[:5]:
        coded = match.group()[:_MAX_CODED_CHARACTERS].rstrip("=").replace("-", "+").replace("_", "/")
        coded = coded[: len(coded) - (len(coded) % 4 == 1)]
        try:
            texts.append(base64.b64decode(coded + "=" * (-len(coded) % 4)).decode())
        except (binascii.Error, ValueError):
            continue
    for match in list(_HEXADECIMAL.finditer(message))[:5]:
        digits = re.sub("[ :]", "", match.group())[:_MAX_CODED_CHARACTERS]
        texts.append(bytes.fromhex(digits).decode(errors="replace"))
    if re.search(r"(?:%[0-9a-fA-F]{2}|&#?\w+;)", message):
        texts.append(html.unescape(urllib.parse.unquote(message)))
    return [text for text in texts if _is_text(text)]


def _is_text(text: str) -> bool:
    plain = sum(character.isalpha() or character in " .,?!'" for character in text)
    return len(text) >= 8 and plain > 0.85 * len(text)


def _unleet(text: str) -> str:
    """Return `text` with the digits and signs in words as letters; "1" and "2" alone are "i" and "to"."""
    text = _LEET_WORD.sub(lambda match: match.group().translate(_LEET), text)
    return re.sub(r"\b1\b", "i", re.sub(r"\b2\b", "to", text))


def _close_up(spaced: str, rules: Rules) -> str:
    """Return letters that were set apart as words: "p o i s o n  m e" by the wide gaps, "h o w t o" by known words."""
    words = [re.sub(r"[^a-z0-9]", "", part.lower()).translate(_LEET) for part in _WIDE_GAP.split(spaced)]
    if len(words) == 1:
        words = _split(words[0][:_MAX_CODED_CHARACTERS], rules)
    return f" {' '.join(words)} "


def _split(letters: str, rules: Rules) -> list[str]:
    """Return the split of `letters` into known words that leaves the fewest letters over, then has the fewest words."""
    known = rules.vocabulary | rules.fillers | {word for alias in rules.alias_of for word in alias.split()}
    best: list[tuple[int, int, int]] = [(0, 0, 0)]  # letters left over, words, start of the last word
    for end in range(1, len(letters) + 1):
        left_over, words, _ = best[end - 1]
        choices = [(left_over + 1, words + 1, end - 1)]
        for start in range(max(0, end - _LONGEST_WORD), end):
            if letters[start:end] in known:
                choices.append((best[start][0], best[start][1] + 1, start))
        best.append(min(choices))
    words_found, end = [], len(letters)
    while end:
        start = best[end][2]
        words_found.append(letters[start:end])
        end = start
    return words_found[::-1]
