"""Replies that the rules cannot read, put to a judge: an endpoint on loopback."""

import logging
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from judge_server import Served, serve

from ptsearch import store
from ptsearch.benchmarks import Benchmark, Sample, Scenario, Turn
from ptsearch.benchmarks.parsing import Question
from ptsearch.benchmarks.registry import RULES
from ptsearch.config import BenchmarksConfig, Config, JudgeConfig
from ptsearch.evaluation import llm_judge
from ptsearch.evaluation.llm_judge import Ask
from ptsearch.scoring import scores

KEY = "sk-secret-123"
REPLIES = ["no", "Hard to say, it depends.", "yes or no", "  ", "Mu.", "I cannot answer that."]
ASK = Ask("Is it?", ("no", "yes"), "Mu.")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_judge, "WAIT", 0.0)


def reader(folder: Path, **judge: object) -> llm_judge.Reader:
    config = Config(
        benchmarks=BenchmarksConfig(extract="judge", judge=JudgeConfig(**judge)),  # type: ignore[arg-type]
        cache_dir=str(folder),
    )
    found = llm_judge.open_reader(config)
    assert found is not None
    return found


def asked(abstain: bool = False) -> tuple[Benchmark, pa.Table]:
    question = Question(("no", "yes"), abstain=("unknown",) if abstain else ())
    turns = (Turn("user", "Was it?"), Turn("assistant", "Yes"), Turn("user", "Is it?"))
    samples = tuple(Sample(f"s/{i}", str(i), "s", turns, question, 0) for i in range(len(REPLIES)))
    empty = [None] * len(REPLIES)
    table = pa.table(
        {
            "sample": [sample.id for sample in samples],
            "reply": REPLIES,
            "logprobs": empty,
            "offsets": empty,
        }
    )
    scenarios = {"s": Scenario("s", "s", mode="generate", lead="")}
    return Benchmark("ethics", "file", 1, scenarios, samples, {}), table


def quiet(*_: object) -> None:
    pass


def settle(judge: llm_judge.Reader, asks: list[Ask]) -> None:
    if missing := llm_judge.unsettled(judge, asks):
        llm_judge.settle(judge, missing, quiet)


def test_only_what_does_not_parse_is_asked() -> None:
    benchmark, table = asked()
    codes = scores.answers(benchmark, table, RULES["clean"])
    assert codes.tolist() == [0, -2, -3, -2, -2, -1]
    left = llm_judge.unread(benchmark, table, codes.tolist(), start=10)
    assert [unread.row for unread in left] == [11, 12, 14]
    assert {unread.ask.question for unread in left} == {"Is it?"}


@pytest.mark.parametrize(("abstain", "declined"), [(False, -1), (True, 2)])
def test_verdicts_become_codes(abstain: bool, declined: int, tmp_path: Path) -> None:
    benchmark, table = asked(abstain)
    before = scores.answers(benchmark, table, RULES["clean"])
    left = llm_judge.unread(benchmark, table, before.tolist())
    says = {"Hard": "Refused.", "yes or": "'unclear'", "Mu.": "**Yes**"}

    def say(message: str) -> str:
        reply = message.split("Reply:\n")[1]
        return next(word for start, word in says.items() if reply.startswith(start))

    with serve(Served(say)) as url:
        judge = reader(tmp_path, url=url, name="m")
        settle(judge, [unread.ask for unread in left])
        codes, judged = llm_judge.decide(judge, before, left)
    assert codes.tolist() == [0, declined, -3, -2, 1, before[5]]
    assert judged.tolist() == [False, True, False, False, True, False]


def test_nothing_is_asked_twice_and_the_cache_names_the_judge(tmp_path: Path) -> None:
    served = Served(lambda _: "yes")
    with serve(served) as url:
        judge = reader(tmp_path, url=url, name="m")
        settle(judge, [ASK, ASK])
        settle(judge, [ASK])
        assert len(served.requests) == 1
        assert served.requests[0]["path"] == "/v1/chat/completions"
        assert (served.requests[0]["model"], served.requests[0]["temperature"]) == ("m", 0)
        others = [
            ASK._replace(reply="Ha."),
            ASK._replace(question="Q"),
            ASK._replace(labels=("a",)),
        ]
        assert llm_judge.unsettled(judge, others) == others
        assert llm_judge.unsettled(reader(tmp_path, url=url, name="other"), [ASK]) == [ASK]
    [file] = [path for path in judge.verdicts.rglob("*") if path.is_file()]
    assert store.read_record(file) == {"judge": judge.identity, "verdict": "yes"}


def test_anything_but_a_choice_is_unclear(tmp_path: Path) -> None:
    for index, said in enumerate(["yes and no", "", "The reply is yes", "maybe"]):
        with serve(Served(lambda _, said=said: said)) as url:
            judge = reader(tmp_path, url=url, name=str(index))
            settle(judge, [ASK])
            left = [llm_judge.Unread(0, ASK, -1)]
            codes, judged = llm_judge.decide(judge, np.array([-3], dtype=np.int16), left)
        assert (codes.tolist(), judged.tolist()) == ([-3], [False])


def test_the_key_goes_into_the_header_alone(tmp_path, monkeypatch, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    served = Served(lambda _: "no")
    with serve(served) as url:
        settings = {"url": url, "name": "m", "api_key_env": "JUDGE_KEY"}
        with pytest.raises(ValueError, match="environment variable JUDGE_KEY is not set"):
            reader(tmp_path, **settings)
        monkeypatch.setenv("JUDGE_KEY", KEY)
        judge = reader(tmp_path, **settings)
        settle(judge, [ASK])
        assert served.headers[0]["Authorization"] == f"Bearer {KEY}"
        served.failures, served.body = [401], f"wrong key {KEY}".encode()
        with pytest.raises(ValueError, match=r"HTTP 401") as refused:
            settle(judge, [ASK._replace(reply="Ha.")])
    kept = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert KEY not in kept + caplog.text + str(refused.value) + repr(judge)


def test_busy_endpoints_are_asked_again(tmp_path: Path) -> None:
    served = Served(lambda _: "yes", failures=[429, 503])
    with serve(served) as url:
        settle(reader(tmp_path, url=url, name="m"), [ASK])
        assert len(served.requests) == 3
        served.failures = [500] * 9
        with pytest.raises(ValueError, match=r"no answer from .*HTTP 500"):
            settle(reader(tmp_path, url=url, name="n", retries=1), [ASK])
        assert len(served.requests) == 5


def test_no_endpoint_a_slow_one_and_one_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no answer from http://127\.0\.0\.1:9/v1/.*NewConnectionError"
    ):
        settle(reader(tmp_path, url="http://127.0.0.1:9/v1", name="m", retries=0), [ASK])
    gate = threading.Event()
    with serve(Served(lambda _: "yes", seconds=gate)) as url:
        slow = reader(tmp_path, url=url, name="m", retries=0, timeout=0.2)
        with pytest.raises(ValueError, match="ReadTimeoutError"):
            settle(slow, [ASK])
        gate.set()
    other = Served(lambda _: "yes", body=b"<html>")
    with serve(other) as url, pytest.raises(ValueError, match="not with a chat completion"):
        settle(reader(tmp_path, url=url, name="m"), [ASK])
    assert llm_judge.unsettled(slow, [ASK]) == [ASK]


def test_verdicts_before_a_failure_are_kept(tmp_path: Path) -> None:
    asks = [ASK._replace(reply=f"Mu {i}.") for i in range(4)]
    served = Served(lambda _: "yes", failures=[200, 200, 400])
    with serve(served) as url:
        judge = reader(tmp_path, url=url, name="m", parallel=1)
        with pytest.raises(ValueError, match="HTTP 400"):
            llm_judge.settle(judge, asks, quiet)
        assert llm_judge.unsettled(judge, asks) == asks[2:]


def test_the_identity_follows_the_judge(tmp_path: Path) -> None:
    identities = {
        reader(tmp_path, url="http://a/v1", name="m").identity,
        reader(tmp_path, url="http://a/v1", name="n").identity,
        reader(tmp_path, url="http://b/v1", name="m").identity,
    }
    assert len(identities) == 3
    assert llm_judge.open_reader(Config()) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs benchmarks.judge.url"),
        ({"url": "http://a/v1"}, "needs benchmarks.judge.name"),
        ({"url": "a/v1", "name": "m"}, "must begin with http"),
    ],
)
def test_a_judge_that_cannot_be(settings, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        reader(tmp_path, **settings)
