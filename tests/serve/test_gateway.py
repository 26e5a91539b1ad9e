"""The gateway: requests, votes, limits, metrics; engines that fail are in test_failing_engines."""

import enum
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from openai import NotFoundError, OpenAI
from pydantic import BaseModel
from serving import (
    CHOICE,
    LABELS,
    NAMES,
    FakeEngine,
    ask,
    by_checksum,
    engines,
    gateway,
    live,
    outcomes,
    running,
    write_folder,
)

from ptsearch.benchmarks.parsing import Question
from ptsearch.config import ServeConfig
from ptsearch.deploy.folder import LoggedVote
from ptsearch.deploy.query import Query
from ptsearch.serve import app
from ptsearch.voting import votes


def test_the_openai_client_works_unchanged(tmp_path) -> None:
    with gateway(tmp_path, engines("yes", "no", "yes")) as url:
        client = OpenAI(base_url=url, api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == ["out"]
        said = client.chat.completions.create(
            model="out", messages=[{"role": "user", "content": "Is it?"}], extra_body=CHOICE,
            logprobs=True, top_logprobs=2,
        )  # fmt: skip
        assert said.choices[0].message.content == "yes"
        assert said.usage.prompt_tokens == 7
        top = said.choices[0].logprobs.content[0].top_logprobs
        assert [entry.token for entry in top] == ["yes", "no"]
        assert [entry.logprob for entry in top] == pytest.approx([-0.4055, -1.0986], abs=1e-4)
        members = said.model_extra["ptsearch"]["members"]
        assert [member["answer"] for member in members] == ["yes", "no", "yes"]
        said = client.completions.create(
            model="out", prompt="Is it?", extra_body={"guided_choice": LABELS}, logprobs=1
        )
        assert said.choices[0].text == "yes"
        assert said.choices[0].logprobs.tokens == ["yes"]


@pytest.mark.parametrize(
    ("schema", "content"),
    [
        ({"type": "string", "enum": LABELS}, '"yes"'),
        ({"type": "object", "properties": {"it": {"enum": LABELS}}}, '{"it": "yes"}'),
    ],
)
def test_labels_as_a_schema(schema, content, tmp_path) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    with gateway(tmp_path, engines("yes")) as url:
        client = OpenAI(base_url=url, api_key="none", max_retries=0)
        turns = [{"role": "user", "content": "Is it?"}]
        said = client.chat.completions.create(model="out", messages=turns, response_format=form)
        assert said.choices[0].message.content == content


class Verdict(enum.Enum):
    NO, YES, MAYBE = LABELS


class Found(BaseModel):
    verdict: Verdict


def test_the_clients_own_parsing(tmp_path) -> None:
    """Pydantic writes an Enum as a reference to a definition."""
    with gateway(tmp_path, engines("yes")) as url:
        client = OpenAI(base_url=url, api_key="none", max_retries=0)
        turns = [{"role": "user", "content": "Is it?"}]
        said = client.chat.completions.parse(model="out", messages=turns, response_format=Found)
        assert said.choices[0].message.parsed == Found(verdict=Verdict.YES)
        assert client.models.retrieve("out").id == "out"
        with pytest.raises(NotFoundError):
            client.models.retrieve("some/other")


def test_a_stream_is_one_chunk(tmp_path) -> None:
    with gateway(tmp_path, engines("yes")) as url:
        client = OpenAI(base_url=url, api_key="none", max_retries=0)
        stream = client.chat.completions.create(
            model="out", messages=[{"role": "user", "content": "Is it?"}], extra_body=CHOICE,
            stream=True, stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = list(stream)
        assert [choice.delta.content for c in chunks for choice in c.choices] == ["yes"]
        assert chunks[-1].usage.prompt_tokens == 7


def test_engines_are_asked_for_the_labels(tmp_path) -> None:
    members = engines("yes")
    with gateway(tmp_path, members) as url:
        ask(url)
        httpx.post(f"{url}/completions", json={"prompt": "It is", **CHOICE})
    chat, text = members[0].asked
    assert (chat["model"], chat["temperature"]) == ("high", 0)
    assert chat["structured_outputs"] == {"choice": LABELS}
    assert text["structured_outputs"] == {"choice": [" no", " yes", " maybe"]}


def test_turns_go_to_the_engines_as_the_search_rendered_them(tmp_path) -> None:
    chat = {"arguments": {"enable_thinking": False}, "form": ["fold"]}
    folder, members = write_folder(tmp_path / "out", {"high": None}, chat=chat), engines("yes")
    with running(*members) as urls:
        settings = ServeConfig("gateway", str(folder), port=0, engines=urls)
        turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Is it?"}]
        with live(settings) as url:
            ask(url, messages=turns)
    (asked,) = members[0].asked
    assert asked["chat_template_kwargs"] == {"enable_thinking": False}
    assert asked["messages"] == [{"role": "user", "content": "Be kind.\n\nIs it?"}]


def test_turns_go_to_the_engines_as_text_where_the_study_made_text_of_them(tmp_path) -> None:
    folder = write_folder(tmp_path / "out", {"high": None}, chat={"prompt": "raw"})
    members = engines("yes")
    with (
        running(*members) as urls,
        live(ServeConfig("gateway", str(folder), port=0, engines=urls)) as url,
    ):
        assert ask(url).json()["choices"][0]["message"]["content"] == "yes"
    (asked,) = members[0].asked
    assert asked["prompt"] == "User: Is it?\nAssistant:"
    assert asked["structured_outputs"] == {"choice": [" no", " yes", " maybe"]}


@pytest.mark.parametrize("constrain", ["structured_outputs", "response_format"])
def test_the_answer_is_the_members_vote(constrain, tmp_path) -> None:
    members = [FakeEngine(name, by_checksum(name)) for name in NAMES]
    with gateway(tmp_path, members, constrain=constrain) as url:
        for number in range(20):
            text = f"{number} is prime?"
            codes = [LABELS.index(member.say(text, LABELS)) for member in members]
            said = ask(url, text).json()
            assert said["choices"][0]["message"]["content"] == LABELS[votes.vote(codes)]
            answers = [member["answer"] for member in said["ptsearch"]["members"]]
            assert answers == [LABELS[code] for code in codes]


def test_a_tie_goes_to_the_first_in_the_order_not_to_the_fastest(tmp_path) -> None:
    members = engines("yes", "no")
    members[0].seconds = 0.1
    with gateway(tmp_path, members) as url:
        assert ask(url).json()["choices"][0]["message"]["content"] == "yes"


def test_a_plain_engine_is_read_by_the_rules(tmp_path) -> None:
    members = engines("I would say yes.", "I'm sorry, I cannot say.", "yes or no")
    with gateway(tmp_path, members, constrain="none") as url:
        said = ask(url)
        assert said.json()["choices"][0]["message"]["content"] == "yes"
        assert list(outcomes(said).values()) == ["answered", "refused", "contradictory"]
        assert "structured_outputs" not in members[0].asked[0]


def test_asking_one_by_one_stops_when_the_vote_is_decided(tmp_path) -> None:
    members = [FakeEngine(name, by_checksum(name)) for name in NAMES]
    with gateway(tmp_path, members, lazy=True) as url:
        for number in range(20):
            text = f"{number} is prime?"
            codes = [LABELS.index(member.say(text, LABELS)) for member in members]
            said = ask(url, text)
            assert said.json()["choices"][0]["message"]["content"] == LABELS[votes.vote(codes)]
            outcome = "not asked" if codes[0] == codes[1] else "answered"
            assert outcomes(said)["low"] == outcome
    assert len(members[0].asked) == 20
    assert 0 < len(members[2].asked) < 20


def test_a_request_says_what_a_refusal_is(tmp_path) -> None:
    members = engines("yes", "I'm sorry, I cannot say.", "I cannot help.")

    def vote(**given: object) -> str | None:
        return ask(url, ptsearch={"max_new_tokens": 8, **given}).json()["ptsearch"]["vote"]

    for lazy in (False, True):
        with gateway(tmp_path, members, lazy=lazy) as url:
            assert vote() == vote(refusal="error") == vote(refusal="veto", veto=3) == "yes"
            assert vote(refusal="label") is vote(refusal="veto") is None
            assert "refusal must be" in ask(url, ptsearch={"refusal": "never"}).text


def test_nobody_left_is_a_refusal(tmp_path) -> None:
    with gateway(tmp_path, engines(*["Hm."] * 3), constrain="none") as url:
        message = ask(url).json()["choices"][0]["message"]
        assert message["content"] is None
        assert message["refusal"]


def test_too_many_requests(tmp_path) -> None:
    members = engines("yes")
    with gateway(tmp_path, members, max_concurrent=2) as url, ThreadPoolExecutor(4) as pool:
        members[0].seconds = 0.5
        said = [each.result() for each in [pool.submit(ask, url) for _ in range(4)]]
        assert sorted(response.status_code for response in said) == [200, 200, 429, 429]
        assert {r.headers.get("Retry-After") for r in said if r.status_code == 429} == {"1"}


def test_who_dawdles_with_the_body_is_sent_away(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(app, "BODY_SECONDS", 0.1)
    with gateway(tmp_path, engines("yes"), max_concurrent=1) as url:
        host, port = httpx.URL(url).host, httpx.URL(url).port
        with socket.create_connection((host, port), timeout=10) as slow:
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
        assert ask(url).status_code == 200


def test_the_metrics(tmp_path) -> None:
    with gateway(tmp_path, engines("yes", "no", "yes"), alarm_disagreement=0.4) as url:
        for number in range(60):
            ask(url, f"{number}?")
        ask(url, tools=[{"type": "function"}])
        shown = httpx.get(url.replace("/v1", "/metrics")).text
    for line in (
        'ptsearch_requests_total{status="200"} 60.0',
        'ptsearch_requests_total{status="400"} 1.0',
        'ptsearch_replies_total{member="middle",outcome="answered"} 60.0',
        "ptsearch_disagreement 1.0",
        "ptsearch_disagreement_alarm 1.0",
        "ptsearch_own_seconds_count 60.0",
    ):
        assert line in shown
    assert "\nprocess_resident_memory_bytes " in shown


def logged(vote: str) -> LoggedVote:
    given = {"high": "yes", "middle": vote, "low": "no"}
    return LoggedVote("ethics/7", Query("Is it?", Question(tuple(LABELS))), given, vote)


def test_it_goes_live_with_the_votes_of_the_search(tmp_path) -> None:
    folder = write_folder(tmp_path / "out", dict.fromkeys(NAMES), [logged("yes")])
    with running(*engines("yes", "yes", "no")) as urls:
        settings = ServeConfig("gateway", str(folder), port=0, engines=urls)
        with live(settings) as url:
            assert ask(url).status_code == 200


def test_it_does_not_go_live_with_other_votes(tmp_path) -> None:
    folder = write_folder(tmp_path / "out", dict.fromkeys(NAMES), [logged("no")])
    with running(*engines("yes", "yes", "no")) as urls:
        settings = ServeConfig("gateway", str(folder), port=0, engines=urls)
        with (
            pytest.raises(ValueError, match=r"ethics/7 was 'no', is 'yes' \(by middle\)"),
            live(settings),
        ):
            pass
        settings.max_changed = 1
        with live(settings):
            pass


def test_engines_that_are_not_the_members(tmp_path) -> None:
    folder = write_folder(tmp_path / "out", dict.fromkeys(NAMES[:2]))
    settings = ServeConfig("gateway", str(folder), port=0, wait=0.1)
    with pytest.raises(ValueError, match=r"serve\.engines must have 2 URLs"), live(settings):
        pass
    settings.engines = ["http://127.0.0.1:9/v1"] * 2
    with (
        pytest.raises(ValueError, match="no engine for high at"),
        live(settings),
    ):
        pass
    with running(*engines("yes", "no")) as urls:
        settings.engines = urls[::-1]
        with pytest.raises(ValueError, match="serves middle, not high"), live(settings):
            pass


def test_the_gateway_needs_no_torch() -> None:
    code = "import sys; import ptsearch.serve.gateway; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) is False


def test_a_response_does_not_wait_for_acknowledgements(tmp_path) -> None:
    """Linux delays them by 40 ms at least, and a response is two writes."""
    with gateway(tmp_path, engines("yes")) as url, httpx.Client() as client:
        body = {"prompt": "Is it?", **CHOICE}
        seconds = []
        for _ in range(20):
            started = time.monotonic()
            client.post(f"{url}/completions", json=body)
            seconds.append(time.monotonic() - started)
    assert min(seconds[5:]) < 0.03  # the first few are acknowledged at once


def test_threads_end_with_the_server(tmp_path) -> None:
    before = threading.active_count()
    with gateway(tmp_path, engines("yes")) as url:
        assert ask(url).status_code == 200
    assert threading.active_count() == before
