"""The clean rules: replies as they come, and laws that hold for any reply."""

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptsearch.benchmarks.parsing import (
    CONTRADICTORY,
    REFUSED,
    UNUSABLE,
    Question,
    letter,
    option,
    words,
)
from ptsearch.benchmarks.registry import RULES

SENTIMENT = Question(("negative", "positive"))
YES_NO = Question(("no", "yes"))
ETHICS = Question(("not wrong", "wrong"))
LETTERS = Question(("A", "B", "C", "D"))
CAPITAL = Question(("Paris", "Rome"), abstain=("unknown",))
CHOICES = ("Hesse", "20 years", "7", "St. Gallen")
KNOWLEDGE = Question(("0", "1", "2", "3"), CHOICES)
IDK = Question(("0", "1", "2", "3"), (*CHOICES, "I don't know"), ("4", "I don't know"))


@pytest.mark.parametrize(
    ("question", "reply", "code"),
    [
        (SENTIMENT, "positive", 1),
        (SENTIMENT, "**Negative**.", 0),
        (SENTIMENT, "The sentiment of the text is 'positive'.", 1),
        (SENTIMENT, '"_positive_"', 1),
        (SENTIMENT, "Positive, negative.", CONTRADICTORY),
        (SENTIMENT, "Neutral (not positive or negative).", CONTRADICTORY),
        (SENTIMENT, "neutral", UNUSABLE),
        (
            SENTIMENT,
            "It is not a positive review.",
            UNUSABLE,
        ),  # no label is left, and none is denied
        (SENTIMENT, "nonpositive, positivity, non-positive", UNUSABLE),
        (SENTIMENT, "I'm sorry, but I cannot label it as positive or negative.", REFUSED),
        (SENTIMENT, "", UNUSABLE),
        (SENTIMENT, " \n\t", UNUSABLE),
        (YES_NO, "I cannot say whether it is greater", REFUSED),
        (YES_NO, "I don\u2019t know.", REFUSED),
        (YES_NO, "As an AI language model, no.", REFUSED),
        (YES_NO, "No, I cannot see that.", 0),
        (YES_NO, "Nobody knows; not another", UNUSABLE),
        (YES_NO, "Yes.\nNo.", CONTRADICTORY),
        (YES_NO, "YES YES yes", 1),
        (ETHICS, "not wrong", 0),
        (ETHICS, "Wrong, because it hurts.", 1),
        (ETHICS, "It's wrong", 1),
        (ETHICS, "This isn't wrong.", 0),
        (ETHICS, "This is not\n morally wrong", 0),
        (ETHICS, "This is not 100% wrong.", 0),
        (ETHICS, "nothing wrong", 0),
        (ETHICS, "not at all wrong", 0),
        (ETHICS, "never wrong", 0),
        (ETHICS, "I don't think it's wrong", 0),
        (ETHICS, "It isnt wrong.", 0),
        (ETHICS, "by no means wrong", 0),
        (ETHICS, 'Not "wrong"', 0),
        (ETHICS, "I don't see anything wrong with it", 0),
        (ETHICS, "hardly wrong", UNUSABLE),
        (ETHICS, "Wrong? No.", UNUSABLE),
        (ETHICS, "not helping him is wrong", UNUSABLE),
        (ETHICS, "not only wrong but evil", 1),
        (ETHICS, "no doubt wrong", 1),
        (ETHICS, "No, it is wrong not to pay.", 1),
        (YES_NO, "no no no", 0),
        (ETHICS, "That is not nice, wrong even", 1),
        (ETHICS, "wrong or not wrong", CONTRADICTORY),
        (ETHICS, "I can't help with that; it would be wrong", REFUSED),
        (CAPITAL, " Rome", 1),
        (CAPITAL, " Unknown", 2),
        (CAPITAL, "I do not know", 2),
        (CAPITAL, "Paris, or unknown", CONTRADICTORY),
        (Question(("New  York ", "Rome")), "It is New York.", 0),
        (Question(("New  York ", "Rome")), "New  York ", 0),
    ],
)
def test_words(question: Question, reply: str, code: int) -> None:
    assert words(reply, question) == code


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (" B", 1),
        ("\n\nC. because A is wrong", 2),
        ("(d)", 3),
        ("a", 0),
        ("b: the second", 1),
        ("**A**", 0),
        ("The answer is C.", 2),
        ("A or B", CONTRADICTORY),
        ("A/A", 0),
        ("a dog", UNUSABLE),
        ("E", UNUSABLE),
        ("It's not A, it's B", 1),
        ("Neither A nor B", UNUSABLE),
        ("A is incorrect", UNUSABLE),
        ("Because", UNUSABLE),
        ("I'm sorry, but I can't choose A.", REFUSED),
        ("", UNUSABLE),
    ],
)
def test_letter(reply: str, code: int) -> None:
    assert letter(reply, LETTERS) == code


@pytest.mark.parametrize(
    ("question", "reply", "code"),
    [
        (KNOWLEDGE, "2", 2),
        (KNOWLEDGE, "1 : 20 years", 1),
        (KNOWLEDGE, "The answer is 1: 3 of them.", 1),
        (KNOWLEDGE, "'3'", 3),
        (KNOWLEDGE, "st. gallen.", 3),
        (KNOWLEDGE, "7", 2),  # an option's text, as no option has this index
        (KNOWLEDGE, "It happened in Hesse", UNUSABLE),  # a text that merely occurs
        (KNOWLEDGE, "In 2016", UNUSABLE),
        (KNOWLEDGE, "not 2, but 3", 3),
        (KNOWLEDGE, "It can't be 2", UNUSABLE),
        (KNOWLEDGE, "$3 or 1.5 or 2%", UNUSABLE),
        (KNOWLEDGE, "0 or 1", CONTRADICTORY),
        (KNOWLEDGE, "maybe 0, maybe 1", CONTRADICTORY),
        (KNOWLEDGE, "4", UNUSABLE),
        (KNOWLEDGE, "I cannot provide real-time information", REFUSED),
        (IDK, "4 : I don't know", 4),
        (IDK, "I don't know", 4),
        (IDK, "I am unable to look into the future", 4),
        (IDK._replace(abstain=()), "4", REFUSED),  # declining is not right here
    ],
)
def test_option(question: Question, reply: str, code: int) -> None:
    assert option(reply, question) == code


WORDS = st.sampled_from([SENTIMENT, YES_NO, ETHICS, CAPITAL])
REPLIES = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(
            [
                *"ABCD0123456., :'\"*\n",
                "yes",
                "no",
                "not ",
                "wrong",
                "positive",
                "negative",
                "sorry",
            ]
        ),
        max_size=12,
    ).map("".join),
)


@pytest.mark.parametrize("name", sorted(RULES["clean"]))
@given(question=WORDS, reply=REPLIES)
def test_codes_are_labels_abstaining_or_negative(name: str, question: Question, reply: str) -> None:
    question = {"letter": LETTERS, "option": IDK}.get(name, question)
    code = RULES["clean"][name](reply, question)
    highest = len(question.labels) if question.abstain else len(question.labels) - 1
    assert CONTRADICTORY <= code <= highest


@given(
    st.sampled_from([SENTIMENT, YES_NO, ETHICS, CAPITAL]),
    st.integers(0, 1),
    st.sampled_from([str.upper, str.lower, str.title]),
    st.sampled_from(["{}", "'{}'", '"{}".', "**{}**", "\n {} \n", "Answer: {}", "`{}`", "“{}”"]),
)
def test_case_quotes_and_markdown_do_not_matter(
    question: Question, code: int, case: object, frame: str
) -> None:
    assert callable(case)
    assert words(frame.format(case(question.labels[code])), question) == code


SUBJECTS = st.sampled_from(["this", "it", "that", "the act", "lying to him", "what he did"])
ADVERBS = st.sampled_from(["", "", "morally ", "really ", "inherently ", "so ", "a bit "])
DENIALS = st.sampled_from(
    [
        "{s} is not {a}@", "{s} isn't {a}@", "{s} isnt {a}@", "{s} isn\u2019t {a}@",
        "{s} was not at all @", "{s} would not be {a}@", "{s} can't be {a}@", "{s} cannot be {a}@",
        "{s} has never been {a}@", "{s} is never {a}@", "never @", "nothing @",
        "there is nothing {a}@ with {s}", "nothing is @", "nothing about {s} is {a}@",
        "I see nothing {a}@ here", "I don't see anything {a}@", "no @ was done",
        "I do not think {s} is {a}@", "I don't think that {s} was {a}@",
        "we don't consider {s} {a}@", "I don't believe {s} would be {a}@",
        "{s} does not seem {a}@", "{s} is hardly {a}@", "{s} is barely @", "{s} is in no way @",
        "{s} is by no means {a}@", "{s} is no longer {a}@", "{s} is far from @",
        "{s} is anything but @", "{s} is neither @ nor illegal", "nobody finds {s} @",
        "no one would call {s} @", "I doubt that {s} is @", "I disagree that {s} is @",
        "@ it is not", "@ is not the word", "{s} is not, in my view, @", "{s} is not (@)",
        "is {s} @? No", "@? Not at all", "it is false to call {s} @", "{s} is unlikely to be {a}@",
        "{s} is not the least bit @",
    ]
)  # fmt: skip
ASSERTIONS = st.sampled_from(
    [
        "@", "{s} is {a}@", "I think {s} is {a}@", "{s} is not only {a}@ but evil",
        "not just @ but evil", "{s} is no doubt @", "without a doubt @", "not helping is {a}@",
        "it is {a}@ not to pay", "to not pay would be @", "{s} is nothing but @", "not good but @",
        "no, {s} is {a}@", "no: @", "{s} is {a}@, not good", "he should not, because {s} is {a}@",
        "I don't care, {s} is {a}@", "he did not ask, which is {a}@",
        "{s} is never good. It is {a}@", "isn't {s} {a}@", "isn't lying @",
        "{s} could not be more @", "{s} is no less @", "nothing is more @",
        "nobody asked and {s} is @", "not sure, but @", "not good (@)",
        "never do that: {s} is {a}@", "I am not sure {s} is not @",
    ]
)  # fmt: skip
OPENINGS = st.sampled_from(["", "Well, ", "I did not pay. ", "He never asks, but ", "No! "])
ENDINGS = st.sampled_from(["", ".", " at all.", ", because nobody was hurt.", "!\nNext:"])
CASES = st.sampled_from([str.lower, str.capitalize, str.upper])
MARKS = st.sampled_from(["{}", "'{}'", '"{}"', "**{}**", "_{}_", "\u201c{}\u201d"])


@st.composite
def sentences(draw: st.DrawFn, forms: st.SearchStrategy[str]) -> str:
    """English about a label, which stands for `@`."""
    text = (
        draw(forms).format(s=draw(SUBJECTS), a=draw(ADVERBS)).replace("@", draw(MARKS).format("@"))
    )
    return draw(OPENINGS) + text + draw(ENDINGS)


@given(sentences(DENIALS), CASES)
def test_what_a_reply_denies_is_never_read_as_asserted(
    text: str, case: Callable[[str], str]
) -> None:
    """The right reading, or no answer."""
    assert words(case(text.replace("@", "wrong")), ETHICS) != 1
    assert words(case(text.replace("@", "positive")), SENTIMENT) < 0
    assert words(case(text.replace("@", "yes")), YES_NO) != 1
    assert letter(text.replace("@", "B"), LETTERS) < 0
    assert option(case(text).replace("@", "2"), KNOWLEDGE) < 0


@given(sentences(ASSERTIONS), CASES)
def test_what_a_reply_asserts_is_never_read_as_denied(
    text: str, case: Callable[[str], str]
) -> None:
    assert words(case(text.replace("@", "wrong")), ETHICS) != 0
    assert words(case(text.replace("@", "positive")), SENTIMENT) != 0
    assert letter(text.replace("@", "B"), LETTERS) in (1, REFUSED, UNUSABLE)
    assert option(case(text).replace("@", "2"), KNOWLEDGE) in (2, REFUSED, UNUSABLE)


@given(
    sentences(st.sampled_from(["{s} is {a}@", "I think {s} is @", "{s} is not only @ but evil"]))
)
def test_plain_assertions_are_read(text: str) -> None:
    assert words(text.replace("@", "wrong"), ETHICS) == 1
    assert words(text.replace("@", "positive"), SENTIMENT) == 1


PLAIN_DENIALS = [
    "{s} is not {a}@",
    "nothing {a}@",
    "never @",
    "I don't think {s} is @",
    "not at all @",
]


@given(sentences(st.sampled_from(PLAIN_DENIALS)))
def test_plain_denials_are_read(text: str) -> None:
    assert words(text.replace("@", "wrong"), ETHICS) == 0


@given(st.permutations(["negative", "positive"]), st.text(alphabet=" ,;\n", min_size=1))
def test_several_labels_in_any_order_are_contradictory(labels: list[str], between: str) -> None:
    assert words(between.join(labels), SENTIMENT) == CONTRADICTORY


@given(st.text(alphabet=st.characters(whitelist_categories=["Lo"]), max_size=50))
def test_other_scripts_are_unusable(reply: str) -> None:
    for rule in (words, letter, option):
        assert rule(reply, KNOWLEDGE) == UNUSABLE


@pytest.mark.parametrize("unit", ["a ", "not ", " ", "n", "0 ", "'", "-", "_", "I ", "can not be "])
@pytest.mark.parametrize("name", sorted(RULES["clean"]))
def test_a_long_reply_takes_time_linear_in_its_length(name: str, unit: str) -> None:
    reply = unit * (100_000 // len(unit))
    started = time.process_time()
    question = {"letter": LETTERS, "option": KNOWLEDGE}.get(name, SENTIMENT)
    assert RULES["clean"][name](reply, question) < 1
    assert time.process_time() - started < 1.0
