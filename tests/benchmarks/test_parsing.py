"""The clean rules: replies as they come, and laws that hold for any reply."""

import time

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
        (ETHICS, "That is not nice, wrong even", 1),
        (ETHICS, "wrong or not wrong", CONTRADICTORY),
        (ETHICS, "I can't help with that; it would be wrong", REFUSED),
        (CAPITAL, " Rome", 1),
        (CAPITAL, " Unknown", 2),
        (CAPITAL, "I do not know", 2),
        (CAPITAL, "Paris, or unknown", CONTRADICTORY),
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
