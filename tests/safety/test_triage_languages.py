"""The emergency layer in every language that it has rules for: safety sets, numbers, texts, what English keeps."""

from __future__ import annotations

import pytest

from medical_assistant.safety.phrase_rules import RULES_FOLDER, load_languages, load_rules
from medical_assistant.safety.triage import LEVELS, assess, banner_texts
from tests.safety.test_triage import check_rule_file
from tests.support import safety_rows

LANGUAGES = [rules.language for rules in load_languages()]
OTHERS = LANGUAGES[1:]
# Budgets: the figures of the last tuning, so that a change of rules that loses recall fails here.
MOST_MISSED, MOST_FALSE = 0.05, 0.05


def test_the_languages_that_the_page_names_have_rules() -> None:
    assert LANGUAGES == ["en", "es", "fr", "pt", "sw"]


@pytest.mark.parametrize("language", OTHERS)
def test_safety_set_of_the_language(language: str) -> None:
    found = [(row, safety_rows.triage(row)) for row in safety_rows.rows(f"language_{language}")]
    emergencies = [(row["text"], triage) for row, triage in found if row["level"] == ["emergency"]]
    others = [(row["text"], triage) for row, triage in found if "emergency" not in row["level"]]
    assert len(emergencies) >= 40 and len(others) >= 40
    missed = [text for text, triage in emergencies if triage.level != "emergency"]
    false = [text for text, triage in others if triage.level == "emergency"]
    assert len(missed) <= MOST_MISSED * len(emergencies), missed
    assert len(false) <= MOST_FALSE * len(others), false


@pytest.mark.parametrize("language", OTHERS)
def test_the_answer_is_in_the_language_of_the_message(language: str) -> None:
    answers = [safety_rows.triage(row) for row in safety_rows.rows(f"language_{language}")]
    emergencies = [triage for triage in answers if triage.level == "emergency"]
    own = [triage for triage in emergencies if triage.language == language]
    assert len(own) >= 0.9 * len(emergencies)
    for triage in own:
        texts = load_rules(RULES_FOLDER / f"{language}.yaml").answers
        assert texts["closing"] in triage.answer and triage.reasons[0] in triage.answer and triage.notice
        assert texts["first_aid"][triage.categories[0]] in triage.answer


def test_english_messages_keep_their_level() -> None:
    """No rule of another language may raise an English message that is no emergency."""
    english = load_rules()
    raised = []
    for name in ("not_emergencies", "other_levels"):
        for row in safety_rows.rows(name):
            triage = safety_rows.triage(row)
            if triage.language != english.language and triage.level == "emergency":
                raised.append(row["text"])
    assert raised == []


@pytest.mark.parametrize(
    "text",
    [
        "que es el suicidio",
        "prevención del suicidio",
        "o que é suicídio?",
        "número da linha de prevenção do suicídio",
        "convulsión febril: qué es",
        "convulsao febril: o que e?",
    ],
)
def test_a_word_that_english_shares_does_not_alarm_in_a_question(text: str) -> None:
    assert assess(text).level != "emergency"


@pytest.mark.parametrize("text", ["I am suicidal", "he is convulsing", "convulsions since five minutes"])
def test_the_english_words_still_alarm(text: str) -> None:
    assert assess(text).level == "emergency"


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("voz en la cabeza me dice que ahogue al bebé, parí hace 8 días", "violence"),
        ("tiene 8 meses, encoge las piernas, y la caca le sale como jalea de grosella", "infant"),
        ("le bajó el azúcar a 32", "diabetes"),
        ("pressão 22 por 12, dor de cabeça e vista embaçada", "blood_pressure"),
        ("não consigo urinar desde ontem e a bexiga vai explodir", "abdomen"),
        ("faltei à diálise duas vezes e estou muito fraco", "heart_attack"),
    ],
)
def test_red_flags_that_spanish_and_portuguese_have_as_english_has(text: str, category: str) -> None:
    assert category in assess(text).categories


@pytest.mark.parametrize("language", OTHERS)
def test_rule_file_of_the_language_is_consistent(language: str) -> None:
    check_rule_file(RULES_FOLDER / f"{language}.yaml")


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_level_has_its_texts(language: str) -> None:
    rules = next(rules for rules in load_languages() if rules.language == language)
    english = load_rules().answers
    for key in ("emergency", "crisis", "until_help", "closing"):
        assert rules.answers[key]
    assert set(rules.answers["notice"]) == set(LEVELS[:3])
    assert set(rules.answers["numbers"]) == set(english["numbers"])
    categories = {rule.category for rule in load_rules().rules}
    assert {rule.category for rule in rules.rules} <= categories, "one name for a category in all languages"


def test_every_language_has_the_texts_of_the_banner() -> None:
    names = [sorted(banner_texts(rules.language)) for rules in load_languages()]
    assert all(found == names[0] for found in names)
    assert len({banner_texts(rules.language)["crisis"] for rules in load_languages()}) == len(names)


def test_rows_have_what_the_tests_read() -> None:
    for language in OTHERS:
        for row in safety_rows.rows(f"language_{language}"):
            assert {"text", "level", "category", "split"} <= row.keys()


@pytest.mark.parametrize(
    "text",
    [
        "is amoxicilin safe durring pregnency",
        "is la roche posay ok in pregnancy",
        "can you get convulsion medicine for a migraine dolor",
    ],
)
def test_borrowed_and_misspelt_words_do_not_make_an_english_message_another_one(text: str) -> None:
    triage = assess(text)
    assert triage.language == "en" and triage.level not in ("emergency", "urgent")


def test_a_few_words_of_another_language_still_alarm() -> None:
    found = [assess(text) for text in ("dor forte no peito e suor frio", "dolor fuerte en el pecho", "convulsiones")]
    assert [triage.level for triage in found] == ["emergency"] * 3
