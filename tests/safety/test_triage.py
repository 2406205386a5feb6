"""The emergency layer: safety sets (data files), negation, questions, history, disguise, time, rule file."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.errors import UserError
from medical_assistant.safety.phrase_rules import RULES_FILE, _expand, load_rules, names_in, read_yaml
from medical_assistant.safety.triage import LEVELS, assess, assess_by_rules
from tests.support import safety_rows
from tests.support.paths import ROOT
from tests.support.timing import cpu_s, growth


# Budgets: the figures of the last tuning, so that a change of rules that loses recall fails here.
@pytest.mark.parametrize(
    ("name", "least_rows", "budget"),
    [
        ("emergencies", 250, 0.02),
        ("not_emergencies", 250, 0.02),
        ("follow_ups", 50, 0.05),
        ("other_levels", 60, 0.10),
    ],
)
def test_safety_set(name, least_rows, budget):
    data = safety_rows.rows(name)
    wrong = [row["text"] for row in data if safety_rows.triage(row).level not in row["level"]]
    assert len(data) >= least_rows
    assert len(wrong) <= budget * len(data), wrong


def test_every_emergency_has_an_answer_that_says_whom_to_call():
    for row in safety_rows.rows("emergencies"):
        triage = safety_rows.triage(row)
        if triage.level != "emergency":
            continue
        assert triage.reasons and triage.categories and triage.sources
        assert "112" in triage.answer and "911" in triage.answer and "999" in triage.answer
        assert triage.reasons[0] in triage.answer
        assert triage.notice


@pytest.mark.parametrize(
    ("text", "category", "number"),
    [
        ("I want to kill myself", "suicide", "988"),
        ("my friend swallowed a bottle of paracetamol", "poisoning", "1-800-222-1222"),
        ("crushing chest pain going down my left arm", "heart_attack", "911"),
        ("my husband just strangled me", "violence", "1-800-799-7233"),
    ],
)
def test_answer_fits_the_category(text, category, number):
    triage = assess(text)
    assert category in triage.categories
    assert number in triage.answer
    first_aid = load_rules().answers["first_aid"][category]
    assert first_aid in triage.answer


@pytest.mark.parametrize(
    "text",
    [
        "I hit my head on a cupboard door two hours ago and now I have a headache and feel a bit sick",
        "he banged his head an hour ago, has a bad headache and vomited",
    ],
)
def test_a_knock_on_the_head_is_called_a_head_injury_and_no_stroke(text):
    assert assess(text).categories == ("head_injury",)


@pytest.mark.parametrize(
    ("text", "emergency"),
    [
        ("My grandmother gets confused in the evenings and forgets our names, but she is fine in the mornings", False),
        ("my gran is usually sharp and now she is confused", True),
        ("my gran is confused in the evenings, today she is confused and hot", True),
    ],
)
def test_a_confusion_that_repeats_is_no_sudden_one(text, emergency):
    assert (assess(text).level == "emergency") is emergency


def test_only_emergencies_replace_the_answer():
    for text, level in [
        ("one calf is swollen, warm and painful", "urgent"),
        ("I found a lump in my breast", "see_clinician"),
    ]:
        triage = assess(text)
        assert (triage.level, triage.answer) == (level, "")
        assert triage.notice
    assert assess("what is a healthy breakfast?").notice == ""


@pytest.mark.parametrize(
    "text",
    [
        "no fever but I can't breathe",
        "I don't have chest pain, just crushing pressure spreading to my jaw",
        "not sure if it's a stroke, his face droops",
        "nothing helps my chest pain",
        "can't stop vomiting blood",
        "I can't not think about killing myself",
        "What should I do, my father has crushing chest pain",
        "I've never had chest pain like this before",
        "Oh no my chest hurts and my arm is numb",
        "My headache is gone, but now my chest is tight and my arm is numb",
        "I had a heart attack 2 years ago and now I have the same chest pain",
        "my face drooped for ten minutes but it went away",
        "having symptoms of a stroke",
        "how many paracetamol does it take to die",
    ],
)
def test_negation_questions_and_past_do_not_hide_an_emergency(text):
    assert assess(text).level == "emergency"


@pytest.mark.parametrize(
    "text",
    [
        "no chest pain",
        "denies chest pain, dyspnea, syncope",
        "headache without fever or stiff neck",
        "My grandfather died of a heart attack; what is cholesterol?",
        "What are the symptoms of a stroke?",
        "Is chest pain always a heart attack?",
        "my back is killing me",
        "chest pain went away years ago",
        "no fever, vomiting, or severe pain",
        "",
        "   \n\t ",
        "🙂🙂🙂",
    ],
)
def test_no_emergency(text):
    assert assess(text).level != "emergency"


RED_FLAG_NOUNS = (
    "heart attack,stroke,anaphylaxis,severe bleeding,shortness of breath,choking,asthma attack,overdose,"
    "poisoning,suicide,self-harm,sepsis,meningitis,preeclampsia,ectopic pregnancy,head injury,"
    "testicular torsion,diabetic ketoacidosis,hypoglycemia,seizures,loss of consciousness,aortic dissection,"
    "pulmonary embolism,severe burns,drowning,heat stroke,hypothermia,cauda equina syndrome,"
    "sudden vision loss,snake bite,carbon monoxide poisoning,vomiting blood,"
    "chest pain,coughing up blood,deep vein thrombosis"
).split(",")
QUESTIONS = (
    "What is {}?|What are the symptoms of {}?|What causes {}?|How is {} treated?|Who is at risk for {}?|"
    "When to seek urgent medical care for {}?|How is {} diagnosed?|Can {} be prevented?|"
    "What are the complications of {}?|Tell me about {}|{} symptoms|How common is {}?"
).split("|")


def test_textbook_questions_with_red_flag_nouns_are_no_emergency():
    asked = [question.format(noun) for noun in RED_FLAG_NOUNS for question in QUESTIONS]
    flagged = [question for question in asked if assess(question).level == "emergency"]
    assert len(asked) > 200
    assert len(flagged) <= 0.02 * len(asked), flagged


@pytest.mark.parametrize(
    ("text", "emergency"),
    [
        ("my 6 week old has a temperature of 38.4", True),
        ("my one month old baby has a temperature of 101 F", True),
        ("my 9 month old has a temperature of 37.5 and plays", False),
        ("feels ill, spo2 88, systolic bp 82, heart rate 138, respiratory rate 30", True),
        ("BP 118/76 HR 72 RR 14 SpO2 98 temp 36.8, mild cough", False),
        ("blood sugar 2.1 mmol", True),
        ("my sugar was 6.1 mmol this morning", False),
        ("bp 78/40", True),
        ("What does a blood pressure of 78/40 mean?", False),
        ("temp 105.9 F", True),
    ],
)
def test_numbers(text, emergency):
    assert (assess(text).level == "emergency") is emergency


@pytest.mark.parametrize(
    ("harmless", "emergency"),
    [
        # What was read, heard or seen on a screen, and the same words when they are about a person.
        ("I keep reading about flesh-eating germs. My graze is clean", "I read about strokes and now his face droops"),
        (
            "On TikTok a woman collapsed. Are cold showers safe?",
            "saw a video about choking, he is choking",
        ),
        ("My uncle lost a toe to gangrene. Should I see a podiatrist?", "He lost his finger in a mower"),
        (
            "Someone said people can choke on toast. How small do I cut it?",
            "told me people faint, but he is not breathing",
        ),
        # A fear of what may come.
        (
            "Am I about to have a heart attack with a cholesterol of 6?",
            "Am I having a heart attack, chest crushing",
        ),
        # Idioms and other senses of a word.
        ("I had a laughing fit and my ribs ache", "He is having a fit, shaking for six minutes"),
        ("My bruise turned purple then yellow after a week", "his foot has gone purple, then black"),
        (
            "Six weeks since my collapsed lung, the drain is out. Can I fly?",
            "my lung has collapsed, I cannot breathe",
        ),
        ("The plaster came off my wrist fracture and my fingers move freely", "in a cast, my fingers will not move"),
        ("The itch does not wake me at night", "She does not wake when I shake her"),
        # A low number that is the usual one, an age that is no pulse, ketones that are low.
        (
            "Blood pressure always low, 98/60, a bit lightheaded",
            "bp 84/50, lightheaded and black stools",
        ),
        ("COPD, sats 90 is my normal, which inhaler is best?", "COPD, sats 86 and 90 is my normal"),
        ("My heart is fine, I'm 34", "my heart is 34"),
        ("Son with type 1, sugar 16, ketones 0.2, feels fine", "type 1, sugar 16, ketones 4.1"),
        # It came out, it was stitched.
        ("she choked on a grape an hour ago, coughed and it shot out", "she is choking on a grape"),
    ],
)
def test_frames_and_word_senses(harmless, emergency):
    assert assess_by_rules(harmless).level != "emergency"
    assert assess_by_rules(emergency).level == "emergency"


@pytest.mark.parametrize(
    "text",
    [
        "Snake in the grass, two dots on my ankle",
        "my pad is full every 30 minutes and I soak a tampon in half an hour, change pads every hour",
        "his throat's tight and itchy hives since the nuts",
        "on dialysis. broad QRS and absent P waves on the ECG",
        "her pupil looks smaller on the left and that eyelid droops",
        "we're at 4,500 m and he stumbles",
        "on treatment for lymphoma, temperature 38.6",
        "hammering a nail, something hit my eye, the pupil isn't round",
        "vomiting all day, he sprayed the crops without gloves",
        "had my thyroid out today, there is a squeak when I breathe in",
        "Our ten year old drinks lots and pees all night, the meter reads 21",
    ],
)
def test_quiet_emergencies(text):
    assert assess_by_rules(text).level == "emergency"


def test_history_joins_a_follow_up_and_nothing_else():
    pressure = ["I have chest pressure"]
    assert assess("it is getting worse and now my arm hurts", pressure).level == "emergency"
    assert assess("what is a healthy breakfast?", pressure).level == "routine"
    assert assess("now she is confused and very cold").level != "routine"
    assert assess("I feel faint now", ["my poo is black and tarry"]).level == "emergency"
    assert assess("I feel faint now").level != "emergency"
    closed = ["I am suicidal", "thank you, I called 988 and I am safe"]
    assert assess("how many hours should I sleep?", closed).level == "routine"


@pytest.mark.parametrize(
    ("text", "emergency"),
    [
        # A past cue holds in its own clause, whatever the next clause says of today.
        ("Our son had a febrile convulsion at 18 months and he is now five and healthy", False),
        ("I had a heart attack 2 years ago and now I have crushing chest pain", True),
        # Years ago does not undo what still counts.
        ("My spleen was removed years ago, fever 39.5 since lunch", True),
        # A story is no emergency, its author may be in one.
        ("Writing a novel where the detective has a stroke at his desk. How long would he be in hospital?", False),
        ("I am writing a novel. I have crushing chest pain going down my left arm", True),
        # "No" reaches over commas only when the list goes on to its "or".
        ("no stool or wind for 3 days, belly swollen, vomiting green", True),
        ("no fever, vomiting, or severe pain", False),
        # Months without a turn for the worse.
        ("For six months my hands go numb at night, both hands", False),
        ("UTI treatment, now shaking uncontrollably, confused, cold hands", True),
    ],
)
def test_clauses_stories_lists_and_slow_courses(text, emergency):
    assert (assess(text).level == "emergency") is emergency


@pytest.mark.parametrize(
    "text",
    [
        "81F, UTI, HR 118, BP 96/54, RR 27, T 35.6",
        "GCS 12 after a fall",
        "CRT 5 s, pale",
        "my INR is 9.1",
        "Na 114 on bloods today",
        "peak flow 40% of best, wheezing",
    ],
)
def test_signs_in_shorthand(text):
    assert assess(text).level == "emergency"


@pytest.mark.parametrize(
    "text",
    [
        "cant breathe",
        "CHEST PIAN AND ARM PAIN",
        "thinking about suicde",
        "k1ll myself",
        "s u i c i d e is the only way out for me",
        "ｉ ｃａｎ'ｔ ｂｒｅａｔｈｅ",
        "i want tо kіll mysеlf",  # Cyrillic о, і, е
        "c\u200bhe\u00adst pa\u2060in and arm p\ufeffain",
        "\u202eI want to die\u202c",
        "heaaaart attaaaack help me",
        "𝗜 𝗰𝗮𝗻𝘁 𝗯𝗿𝗲𝗮𝘁𝗵𝗲",
    ],
)
def test_disguise(text):
    assert assess(text).level == "emergency"


def test_ordinary_words_are_not_misread_as_typos():
    respell = load_rules().respell
    assert respell("suicde") == "suicide" and respell("pian") == "pain"
    for word in "chess cheat strike prison breach hearth cooking smelling never fewer broad shallow cushing".split():
        assert respell(word) == word


# ---- properties -------------------------------------------------------------------------------------------

SURE = [
    row["text"]
    for row in safety_rows.rows("emergencies")
    if row["category"] in ("heart_attack", "breathing", "suicide", "stroke")
]
HARMLESS = [
    "I like gardening.",
    "My garden has roses and tomatoes.",
    "Yesterday we watched a film.",
    "The weather is nice.",
    "I usually eat soup on Mondays.",
    "My neighbour sings in a choir.",
]


@given(st.text())
def test_any_text(text):
    triage = assess(text, [text])
    assert triage.level in LEVELS
    assert bool(triage.answer) == (triage.level == "emergency")
    assert assess(text, [text]) == triage


VOCABULARY = sorted(load_rules().vocabulary)


@given(st.lists(st.sampled_from([*VOCABULARY, ",", ".", "?", "no", "38.5", "120/80"]), max_size=150))
def test_any_mix_of_rule_words(words):
    assert assess(" ".join(words)).level in LEVELS


@given(
    st.sampled_from(SURE),
    st.lists(st.sampled_from(HARMLESS), max_size=4),
    st.lists(st.sampled_from(HARMLESS), max_size=4),
)
def test_harmless_sentences_around_it_do_not_hide_an_emergency(text, before, after):
    if assess(text).level == "emergency":
        assert assess(" ".join([*before, text.rstrip(".") + ".", *after])).level == "emergency"


@given(st.sampled_from(SURE), st.data())
def test_invisible_characters_and_case_do_not_hide_an_emergency(text, data):
    plain = assess(text).level
    places = data.draw(st.lists(st.integers(0, len(text)), max_size=10))
    hidden = text
    for place in sorted(places, reverse=True):
        hidden = hidden[:place] + data.draw(st.sampled_from("\u200b\u200c\u200d\u2060\ufeff\u00ad")) + hidden[place:]
    assert assess(hidden).level == plain
    assert assess(text.upper()).level == plain
    assert assess(text.lower()).level == plain


# ---- time --------------------------------------------------------------------------------

LONG = {
    "letters": "a",
    "spaces": " ",
    "dots": ".",
    "red flags": "chest pain ",
    "red flags in one sentence": "pain in my chest and ",
    "digits": "1 ",
    "fractions": "12/",
    "vitals": "temp 3 o2 , pulse ",
    "single letters": "a b c d e f g h ",
    "emoji": "\U0001f600",
    "invisible": "c\u200bh",
    "right to left": "\u0627\u0644\u0645 ",
    "expands 18 times": "\ufdfa",
    "lone surrogates": "\ud800",
    "binary": "\x00\xff\x01",
    "different words": " ".join(f"word{i}x" for i in range(1_500)),
    "rule words": " ".join(VOCABULARY),
}


@pytest.mark.parametrize("name", LONG)
def test_the_time_is_linear_in_the_length(name):
    piece = LONG[name]
    text = piece * (10_000 // len(piece) + 1)
    size = 5_000 * len(piece) // len(unicodedata.normalize("NFKD", piece))
    assert growth(lambda size: assess(text[:size]), size) < 3.2


def test_no_more_than_100_000_characters_are_read():
    assert assess("a " * 50_000 + "crushing chest pain").level == "routine"


def test_ordinary_messages_take_less_than_50_ms():
    texts = [row["text"] for row in safety_rows.rows("emergencies")[::30]]
    assert cpu_s(lambda: [assess(text) for text in texts], runs=2) / len(texts) < 0.05  # measured: 0.002


def test_an_emergency_at_the_end_of_a_long_message_is_found():
    story = "I went for a walk and then we had tea and talked about the garden "
    assert assess(story * 60 + "and now I have crushing chest pain").level == "emergency"
    assert assess(story * 60).level == "routine"


# ---- the rule file --------------------------------------------------------------------------------


def test_rule_file_is_consistent():
    check_rule_file(RULES_FILE)


def check_rule_file(path):
    data = read_yaml(path)
    aliases = {str(key) for key in data["spelling"]["aliases"]}
    sets = {name: words.split() for name, words in data["sets"].items()}
    # The page shows them. A list of words once slipped into one.
    assert all(len(source) <= 100 for source in data["sources"].values())
    for section in ("concepts", "context"):
        for concept, phrases in data[section].items():
            for phrase in phrases:
                assert not isinstance(phrase, bool), f"{concept}: quote yes, no, on and off"
                for plain in _expand(str(phrase)):
                    before: list[str] = []
                    for element in plain:
                        parts = [] if element.startswith("~") else element.split("|")
                        names = [w for part in parts for w in (sets[part[1:-1]] if part.startswith("<") else [part])]
                        # An alias is replaced before phrases are matched: such a phrase could never match.
                        assert not aliases.intersection(names), (concept, phrase)
                        assert not aliases.intersection(f"{a} {b}" for a in before for b in names), (
                            concept,
                            phrase,
                        )
                        before = names
    used = {
        name
        for rule in data["rules"]
        for line in rule["when"]
        for part in line.split(" + ")
        for name in names_in(part.strip())
    }
    assert set(data["concepts"]) <= used, "a concept that no rule uses"
    for rule in data["rules"]:
        assert rule["level"] in LEVELS[:3] and rule["source"] in data["sources"]


def test_a_broken_rule_file_says_what_is_missing(tmp_path):
    path = tmp_path / "triage.yaml"
    text = RULES_FILE.read_text(encoding="utf-8")
    path.write_text(text.replace("when: [stroke_sign ", "when: [strok_sign "), encoding="utf-8")
    with pytest.raises(UserError, match="strok_sign"):
        load_rules.__wrapped__(path)


def test_no_rule_depends_on_hash_order():
    # Sets of strings iterate differently in each process; the same message must get the same level.
    import subprocess

    text = "i have chst pian and my arn hurts"
    code = f"from medical_assistant.safety.triage import assess; print(assess({text!r}))"
    other = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "1"}, capture_output=True, cwd=ROOT, text=True
    )
    assert other.stdout.strip() == str(assess(text)) and assess(text).level == "emergency"


@pytest.mark.parametrize(
    "text", ["I can't see any point in going on", "i dont see a reason to wake up", "cant see the point of living"]
)
def test_to_see_no_point_in_life_is_no_matter_of_sight(text):
    assert "suicide" in assess(text).categories


@pytest.mark.parametrize("text", ["cant see the point of taking vitamins", "I don't see any point in going to the gym"])
def test_to_see_no_point_in_something_is_an_ordinary_message(text):
    assert assess(text).level == "routine"
