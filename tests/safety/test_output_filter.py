"""The output filter: own sentences (data file), cutting, completeness, time, rule file."""

import re
from collections import Counter

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.errors import UserError
from medical_assistant.safety.output_filter import MAX_SENTENCE_CHARACTERS, OutputFilter
from medical_assistant.safety.output_rules import RULES_FILE, load_output_rules
from medical_assistant.safety.phrase_rules import read_yaml
from tests.support import safety_rows
from tests.support.safety_rows import filtered
from tests.support.timing import cpu_s, growth

BAD = "Stop taking your insulin."


# Budgets: the figures of the last measurement (benchmarks/results/safety.json). Held-back rows were written by the
# author of the rules; "after_rules" when the rules were finished: those say more of new wording.
@pytest.mark.parametrize(
    ("split", "after_rules", "missed", "false_alarms"),
    [("tuning", False, 0.02, 0.0), ("held_back", False, 0.04, 0.06), ("held_back", True, 0.40, 0.05)],
)
def test_own_sentences(split, after_rules, missed, false_alarms):
    part = [
        row
        for row in safety_rows.rows("output_filter")
        if row["split"] == split and row.get("after_rules", False) == after_rules
    ]
    violations = [row for row in part if row["rule"]]
    harmless = [row for row in part if not row["rule"]]
    wrongly_shown = [row["text"] for row in violations if not safety_rows.blocked(row)]
    wrongly_blocked = [row["text"] for row in harmless if safety_rows.blocked(row)]
    assert len(wrongly_shown) <= missed * len(violations), wrongly_shown
    assert len(wrongly_blocked) <= false_alarms * len(harmless), wrongly_blocked


def test_own_sentences_are_a_balanced_set():
    data = safety_rows.rows("output_filter")
    names = {rule.name for rule in load_output_rules().rules}
    assert len(data) >= 150
    assert len({(row["text"], row["red_flag"]) for row in data}) == len(data)
    assert 0.4 < sum(row["rule"] is None for row in data) / len(data) < 0.6
    assert sum(row["split"] == "held_back" for row in data) >= len(data) / 4
    for split in ("tuning", "held_back"):
        found = Counter(row["rule"] for row in data if row["split"] == split)
        assert set(found) == {None, *names}


def test_the_rule_is_named_and_the_text_is_not():
    shown, blocked = filtered("Insulin lowers blood sugar. Stop taking your insulin. Eat well.")
    assert (shown, blocked) == ("Insulin lowers blood sugar. Eat well.", ["medicine_change"])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"One line.\n{BAD}\nLast line.", "One line.\nLast line."),
        (f"- Eat well\n- {BAD}\n- Sleep well", "- Eat well\n- Sleep well"),
        (f"1. Eat well.\n2. {BAD}\n3. Sleep well.", "1. Eat well.\n3. Sleep well."),
        (f"First. {BAD}\n\nSecond paragraph.", "First. \n\nSecond paragraph."),
        (f"{BAD} Ask Dr. Smith, e.g. today.", "Ask Dr. Smith, e.g. today."),
        (f"Wow! {BAD}", "Wow! "),
        (BAD, ""),
    ],
)
def test_only_the_sentence_goes(text, shown):
    assert filtered(text) == (shown, ["medicine_change"])


def test_a_sentence_is_shown_as_soon_as_the_next_one_begins():
    output_filter = OutputFilter("")
    assert output_filter.feed("Drink water") == ""
    assert output_filter.feed(". ") == ""
    assert output_filter.feed("R") == "Drink water. "
    assert output_filter.feed("est.") == ""
    assert output_filter.finish() == "Rest."
    assert output_filter.finish() == ""


@pytest.mark.parametrize(
    "text", ["Ask Dr. Who or Mrs. Lee", "Use e.g. Water or 5.5 mg of it", "At 8 a.m. Monday", "1. Eat"]
)
def test_abbreviations_and_numbers_end_no_sentence(text):
    assert OutputFilter("").feed(f"{text}. Next") == f"{text}. "


@pytest.mark.parametrize(
    ("text", "blocked"),
    [
        ("Do not:\n- stop taking your insulin\n- skip meals\n", []),
        ("Do not:\n\n- stop taking your insulin\n", []),
        ("Call your doctor if:\n- You have diabetes.\n- You have asthma.\n", []),
        ("Call your doctor if:\n\nYou have diabetes.\nYou have asthma.\n", []),
        ("Call your doctor if:\n- you feel worse\n\nYou have diabetes.\n", ["diagnosis_as_fact"]),
        ("You should stop:\n- your insulin\n- smoking\n", ["medicine_change"]),
        ("You should stop\ntaking your insulin.\nEat well.", ["medicine_change"]),
        ("Here is how to make crystal meth:\n1. Mix it.\n2. Heat it.\n\nEat well.", ["harmful_instructions"] * 3),
    ],
)
def test_lines_are_read_with_the_line_that_opens_them(text, blocked):
    assert filtered(text)[1] == blocked


def test_a_long_sentence_comes_in_parts_and_hides_nothing():
    words = "and the blood goes round " * 40
    output_filter = OutputFilter("")
    assert len(output_filter.feed(words)) > len(words) - MAX_SENTENCE_CHARACTERS - 1
    for before in range(0, 420, 7):
        text = "x" + " blood" * (before // 6) + " " * (before % 6) + " so you should stop taking your insulin now"
        shown, blocked = filtered(text + " and the blood goes" * 40)
        assert blocked == ["medicine_change"], before
        assert "insulin" not in shown


@pytest.mark.parametrize(
    ("question", "text", "shown"),
    [
        ("", "Your pills do not help. Stop them.", "Your pills do not help. "),
        ("I take sertraline and feel numb.", "You should stop it.", ""),
        ("Should I stop my tablets?", "Yes, you can.", ""),
        ("", "Loud noise harms the ears. Stop it.", "Loud noise harms the ears. Stop it."),
        ("I take a statin. What should I eat?", "Eat less meat. Cut it out.", "Eat less meat. Cut it out."),
        ("Should I stop my tablets?", "Do not stop them.", "Do not stop them."),
    ],
)
def test_pronouns_are_read_with_what_came_before(question, text, shown):
    assert filtered(text, question, size=1)[0] == shown


@pytest.mark.parametrize(
    ("question", "text", "shown"),
    [
        ("My toe hurts.", "It is gout.", ""),
        ("What is podagra?", "It is gout.", "It is gout."),
        ("My toe hurts. Is it gout?", "It is a form of arthritis.", "It is a form of arthritis."),
        ("My toe hurts.", "This could be gout, see a doctor.", "This could be gout, see a doctor."),
        ("I cough.", "You probably have pneumonia.", ""),
        ("I cough.", "You probably have pneumonia, so see a doctor.", "You probably have pneumonia, so see a doctor."),
        ("I cough.", "You probably have a cold.", "You probably have a cold."),
    ],
)
def test_a_diagnosis_goes_by_how_sure_and_how_grave_it_is(question, text, shown):
    assert filtered(text, question)[0] == shown


def test_delay_is_blocked_with_a_red_flag_only():
    text = "It will go away by itself."
    assert filtered(text) == (text, [])
    assert filtered(text, red_flags=["chest pain"]) == ("", ["delay_of_care"])


def test_a_mark_of_a_source_belongs_to_what_it_proves():
    output_filter = OutputFilter("")
    assert output_filter.feed("Rest is good. [1] [2] Then walk") == "Rest is good. [1] [2] "


@pytest.mark.parametrize(
    "text",
    [
        "St\u043ep t\u0430king y\u043eur insulin.",  # Cyrillic o and a
        "Stop tak\u200bing your insulin.",
        "\uff33\uff54\uff4f\uff50 taking your insulin.",
        "**Stop** taking *your* insulin.",
        "STOP TAKING YOUR INSULIN!",
        "> - Stop taking your insulin",
        "Stop\u00a0taking\u2003your insulin.",
    ],
)
def test_disguises_are_read(text):
    assert filtered(text) == ("", ["medicine_change"])


pieces = st.sampled_from(
    [BAD, "You have diabetes.", "Take 5.5 mg [1].", "Rest", "Do not:", "Wait and see!", "e.g.", "Dr. No", "1.", "- "]
    + [" ", "  ", "\n", "\n\n", "\r\n", "\t", "[", "[1]", "[12", ".", "?", "\u3002", "\u2026", "**", "x" * 150]
    + ["</s>", "<|im_end|>", "\u0130", "\ufdfa", "\U0001f642", "e\u0301", "\ud800", "If", "stop", "a b " * 60]
)
sentences = st.sampled_from([(BAD, False), ("Eat well.", True), ("Ask Dr. Lee now!", True)])
texts = st.one_of(st.text(max_size=900), st.lists(pieces, max_size=25).map("".join))


@given(texts, st.lists(st.integers(0, 3000), max_size=12))
def test_how_the_text_arrives_changes_nothing(text, cuts):
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    whole, pieced, lettered = (OutputFilter("", ["flag"]) for _ in range(3))
    shown = whole.feed(text) + whole.finish()
    parts = [pieced.feed(text[a:b]) for a, b in zip(places, places[1:], strict=False)]
    assert ("".join(parts) + pieced.finish(), pieced.blocked) == (shown, whole.blocked)
    letters = [lettered.feed(letter) for letter in text]
    assert ("".join(letters) + lettered.finish(), lettered.blocked) == (shown, whole.blocked)


@given(texts)
def test_nothing_is_lost_but_what_is_blocked(text):
    shown, blocked = filtered(text, "", ["flag"])
    if not blocked:
        assert shown == text
    at = 0
    for letter in shown:  # nothing is added, nothing changes its order
        at = text.index(letter, at) + 1
    assert len(shown) < len(text) or not blocked


@given(st.lists(sentences, min_size=1, max_size=12))
def test_exactly_the_violating_sentences_go(chosen):
    text = " ".join(sentence for sentence, _ in chosen)
    shown, blocked = filtered(text)
    assert shown.split() == " ".join(sentence for sentence, good in chosen if good).split()
    assert len(blocked) == sum(not good for _, good in chosen)


@given(st.text(max_size=300), st.text(max_size=300))
def test_no_question_and_no_answer_raises(question, text):
    filtered(text, question, ["flag"])
    filtered(text + "\ud800\udfff\x00\ufdfa", "\ud800" + question)


def test_nothing_long_is_kept_back():
    for letter in ("a", " ", "\n", ".", "\ufdfa", "[", "1 "):
        output_filter = OutputFilter("", ["flag"])
        shown = output_filter.feed(letter * 5_000)
        assert len(letter) * 5_000 - len(shown) <= MAX_SENTENCE_CHARACTERS + 1


def test_a_sentence_takes_under_five_milliseconds():
    sentences = [row["text"] for row in safety_rows.rows("output_filter") if row["rule"] is None][::4]
    output_filter = OutputFilter("", ["flag"])
    output_filter.feed("Warm up. ")

    def read_all():
        for sentence in sentences:
            for token in re.findall(r"\s?\S{1,4}", sentence + "\n"):
                output_filter.feed(token)
            output_filter.feed("\n")

    assert cpu_s(read_all, runs=2) / len(sentences) < 0.005  # measured: 1.3 ms on WikiDoc and MedQuAD answers


@pytest.mark.parametrize(
    "hostile",
    [
        "you have ",
        "stop ",
        "do not ",
        "if ",
        "take 5 ",
        "a ",
        "the lump ",
        "<|",
        "[1",
        ". ",
        "\n- ",
        "wait for ",
        "\ufdfa",
    ],
)
def test_the_time_is_linear(hostile):
    """Windows of 400 characters: four take twice as long as two, and no window takes long."""
    text = hostile * (1_600 // len(hostile) + 1)
    assert growth(lambda size: filtered(text[:size], "", ["flag"]), 800) < 3.2


def test_the_time_is_linear_in_a_long_answer():
    text = "Rest well. " * 2_000
    assert growth(lambda size: filtered(text[:size], "", ["flag"], size=20), 5_000) < 3.2


def test_rules_have_sources_and_bounded_repeats():
    content = read_yaml(RULES_FILE)
    compiled = load_output_rules()
    assert len({rule.name for rule in compiled.rules}) >= 10
    assert {rule.needs_red_flag for rule in compiled.rules} == {True, False}
    for rule in content["rules"]:
        assert set(rule) <= {"name", "source", "patterns", "except", "prefilter", "needs_red_flag", "known"} | {
            "ignores_context",
            "blocks_list",
        }
        assert re.search(r"[A-Z]{2}", rule["source"]) and len(rule["source"]) > 15
    used = RULES_FILE.read_text(encoding="utf-8")
    assert all(used.count(f"<{word}>") for word in content["words"])
    patterns = [pattern for shorthand in compiled.shorthands for pattern in (shorthand.short, shorthand.context)]
    for rule in compiled.rules:
        patterns += [*rule.patterns, *rule.known, *filter(None, [rule.exceptions, rule.prefilter])]
    for pattern in patterns:
        bare = re.sub(r"\\.|\[[^\]]*\]", "x", pattern.pattern)
        assert not re.search(r"[*+]|\{\d*,\}", bare), pattern.pattern
        assert not pattern.search("")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"name": "a", "patterns": ["x"]}, "source"),
        ({"name": "a", "source": "WHO", "patterns": []}, "patterns"),
        ({"name": "a", "source": "WHO", "patterns": ["<word>"]}, "<word>"),
        ({"name": "a", "source": "WHO", "patterns": ["("]}, "pattern"),
    ],
)
def test_a_broken_rule_file_says_what_is_wrong(tmp_path, rule, message):
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"words": {}, "rules": [rule]}), encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(message)):
        load_output_rules(path)


def test_rules_are_compiled_once():
    assert load_output_rules() is load_output_rules()
