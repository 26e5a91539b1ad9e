"""The local server on a tiny ensemble: answers as offline, and what it refuses."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from members import folder  # noqa: F401 - a fixture: three members of one tiny model
from serving import live, write_folder

from ptsearch.benchmarks.parsing import Question
from ptsearch.config import ServeConfig
from ptsearch.deploy.ensemble import PrecisionEnsemble
from ptsearch.deploy.folder import LoggedVote
from ptsearch.deploy.query import Query
from ptsearch.serve import openai_api

LABELS = ["a", "b", "c", "d"]  # of one token each: noise prefers the shorter one
CHOICE = {"structured_outputs": {"choice": LABELS}}
KEY = "correct horse"
PROMPTS = [f"{'Well. ' * (n % 7)}Is it {n}" for n in range(48)]


@pytest.fixture(scope="module")
def ensemble(folder: Path) -> PrecisionEnsemble:
    return PrecisionEnsemble.from_pretrained(folder)


@pytest.fixture(scope="module")
def url(ensemble, tmp_path_factory) -> Iterator[str]:
    """A live server with a key, whose votes were logged by the ensemble offline."""
    logged = []
    for number, prompt in enumerate(PROMPTS[:4]):
        asked = Query(prompt, Question(tuple(LABELS)))
        answer = ensemble.ask([asked])[0]
        logged.append(LoggedVote(f"p/{number}", asked, answer.members, answer.label))
    checkpoints = ensemble.folder.members
    out = write_folder(tmp_path_factory.mktemp("served") / "out", checkpoints, logged)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERVE_KEY", KEY)
        config = ServeConfig(
            dir=str(out), port=0, api_key_env="SERVE_KEY", max_body=20_000, max_prompt=15_000
        )
        with live(config) as url:
            yield url


def post(url: str, body: dict | bytes, path: str = "completions", key: str = KEY):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{url}/{path}", content=content, headers=headers, timeout=30)


def test_many_clients_get_the_answers_of_their_own_prompts(url, ensemble) -> None:
    offline = ensemble.answer(PROMPTS, LABELS)
    assert len({answer.label for answer in offline}) > 1
    with ThreadPoolExecutor(16) as pool:
        said = list(pool.map(lambda p: post(url, {"prompt": p, **CHOICE}).json(), PROMPTS * 3))
    for one, answer in zip(said, offline * 3, strict=True):
        assert one["choices"][0]["text"] == answer.label
        members = {row["member"]: row["answer"] for row in one["ptsearch"]["members"]}
        assert members == answer.members


def test_the_openai_client_works_unchanged(url, ensemble) -> None:
    client = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it?"}]
    offline = ensemble.answer([turns], LABELS)[0]
    said = client.chat.completions.create(model="out", messages=turns, extra_body=CHOICE)
    assert said.choices[0].message.content == offline.label
    assert said.usage.prompt_tokens > 10
    assert [model.id for model in client.models.list()] == ["out"]
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt", messages=turns, extra_body=CHOICE)
    with pytest.raises(openai.BadRequestError, match="free text"):
        client.chat.completions.create(model="out", messages=turns)


def test_turns_are_asked_as_text_where_the_study_made_text_of_them(ensemble, tmp_path) -> None:
    out = write_folder(tmp_path / "out", ensemble.folder.members, chat={"prompt": "raw"})
    prompts = [f"Is it {n}" for n in range(8)]
    offline = ensemble.answer([f"User: {each}\nAssistant:" for each in prompts], LABELS)
    as_turns = ensemble.answer([[{"role": "user", "content": each}] for each in prompts], LABELS)
    assert [answer.label for answer in offline] != [answer.label for answer in as_turns]
    with live(ServeConfig(dir=str(out), port=0)) as url:
        for prompt, answer in zip(prompts, offline, strict=True):
            body = {"messages": [{"role": "user", "content": prompt}], **CHOICE}
            said = post(url, body, "chat/completions").json()
            assert said["ptsearch"]["vote"] == answer.label


def test_each_stage_of_the_start_is_told(ensemble, tmp_path, caplog) -> None:
    out = write_folder(tmp_path / "out", ensemble.folder.members)
    with caplog.at_level("INFO", "ptsearch"), live(ServeConfig(dir=str(out), port=0)):
        told = [record.getMessage() for record in caplog.records]
    assert [line.split(" of ")[0] for line in told[:5]] == [
        "comparing the files", "loading member 1", "loading member 2", "loading member 3",
        "measuring the speed",
    ]  # fmt: skip
    assert told[1] == "loading member 1 of 3: high"
    assert told[5].startswith("asking what the study asked")


def test_members_may_refuse_where_they_reply(url, ensemble) -> None:
    body = {"prompt": "Is it?", **CHOICE, "ptsearch": {"max_new_tokens": 3}}
    said = post(url, body).json()
    offline = ensemble.answer(["Is it?"], LABELS, max_new_tokens=3)[0]
    members = {row["member"]: row["answer"] for row in said["ptsearch"]["members"]}
    assert members == offline.members
    assert {row["outcome"] for row in said["ptsearch"]["members"]} == {"unusable"}


TURN = {"role": "user", "content": "Is it?"}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("completions", b"{", 400, "not JSON"),
        ("completions", b"[" * 9000, 400, "not JSON"),
        ("completions", b'{"n": ' + b"1" * 9000 + b"}", 400, "not JSON"),
        ("completions", b"\xff\xfe{}", 400, "not UTF-8"),
        ("completions", b'"x"', 400, "must be a JSON object"),
        ("completions", {"prompt": "x" * 21_000, **CHOICE}, 413, "larger than 20000 bytes"),
        ("completions", {"prompt": "x" * 15_001, **CHOICE}, 400, "15000 are allowed"),
        ("completions", {"prompt": "x" * 9000, **CHOICE}, 400, "context is 8192"),
        ("completions", {"prompt": "", **CHOICE}, 400, "prompt is empty"),
        ("completions", {"prompt": [1, 2], **CHOICE}, 400, "prompt must be one text"),
        ("completions", {"prompt": "\ud800", **CHOICE}, 400, "surrogate"),
        ("completions", {"prompt": "x", "guided_choice": ["a", "\ud800"]}, 400, "surrogate"),
        ("completions", {**CHOICE}, 400, "prompt must be one text"),
        ("completions", {"prompt": "x"}, 400, "free text"),
        ("completions", {"prompt": "x", "guided_choice": ["a", "a "]}, 400, "distinct"),
        ("completions", {"prompt": "x", "guided_choice": [1, 2]}, 400, "distinct texts"),
        ("completions", {"prompt": "x", "guided_choice": "yes"}, 400, "distinct texts"),
        ("completions", {"prompt": "x", "guided_choice": ["1", "10"]}, 400, "'10' begins as '1'"),
        ("completions", {"prompt": "x", **CHOICE, "ptsearch": []}, 400, "ptsearch may hold"),
        (
            "completions",
            {"prompt": "x", **CHOICE, "ptsearch": {"max_new_token": 3}},
            400,
            "ptsearch has no 'max_new_token': did you mean max_new_tokens?",
        ),
        ("completions", {"prompt": "x", "guided_choice": ["a b", "a  b"]}, 400, "distinct"),
        ("completions", {"prompt": "x", "guided_choice": ["a", "b" * 1001]}, 400, "may have 1000"),
        ("completions", {"prompt": "x", "n": 2, **CHOICE}, 400, "n must be 1"),
        ("completions", {"prompt": "x", "logprobs": -1, **CHOICE}, 400, "log-probabilities"),
        ("completions", {"prompt": "x", "model": "y", **CHOICE}, 404, "'y' does not exist"),
        ("completions", {"prompt": "x", "model": ["y"], **CHOICE}, 404, "does not exist"),
        ("chat/completions", {"messages": [], **CHOICE}, 400, "at least one message"),
        ("chat/completions", {"messages": [{"role": "tool"}], **CHOICE}, 400, "role must be"),
        ("chat/completions", {"messages": [TURN | {"content": 1}], **CHOICE}, 400, "be text"),
        ("chat/completions", {"messages": [TURN | {"content": " "}], **CHOICE}, 400, "is empty"),
        ("chat/completions", {"messages": [TURN], "tools": [{}], **CHOICE}, 400, "tools"),
        ("embeddings", {"input": "x"}, 404, "Not Found"),
    ],
)
def test_bad_requests_are_told_so_and_the_server_goes_on(path, body, status, message, url) -> None:
    said = post(url, body, path)
    assert said.status_code == status
    error = said.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert message in error["message"]
    assert post(url, {"prompt": "x", **CHOICE}).status_code == 200


def test_a_bad_request_does_not_spoil_the_batch(url) -> None:
    bodies = [{"prompt": "x" * (9000 if n % 2 else 9), **CHOICE} for n in range(16)]
    with ThreadPoolExecutor(16) as pool:
        said = list(pool.map(lambda body: post(url, body), bodies))
    assert [response.status_code for response in said] == [200, 400] * 8


@pytest.mark.parametrize("given", ["", KEY, "Bearer correct", "Bearer k\u00e9y", f"Basic {KEY}"])
def test_a_wrong_key(given, url) -> None:
    headers = {"Authorization": given.encode()} if given else {}
    for said in (
        httpx.get(f"{url}/models", headers=headers),
        httpx.post(f"{url}/completions", headers=headers, json={"prompt": "x", **CHOICE}),
    ):
        assert said.status_code == 401
    assert httpx.get(url.replace("/v1", "/health")).json() == {"status": "ok", "away": []}


def test_logs_hold_prompts_only_if_asked(folder, caplog) -> None:
    caplog.set_level("DEBUG")
    for shown in (False, True):
        caplog.clear()
        config = ServeConfig(dir=str(folder), port=0, log_prompts=shown, lazy=True)
        with live(config) as url:
            said = post(url, {"prompt": "the secret?", **CHOICE}).json()
            post(url, {"prompt": "the secret?" * 9000, **CHOICE})
        assert ("the secret?" in caplog.text) == shown
        assert said["ptsearch"]["members"][0]["outcome"] == "answered"


def test_what_keeps_it_from_starting(folder, tmp_path, url) -> None:
    port = int(url.split(":")[2].split("/")[0])
    for config, message in (
        (ServeConfig(), r"serve\.dir is missing"),
        (ServeConfig(dir=str(tmp_path)), "is not an exported ensemble"),
        (ServeConfig(dir=str(folder), api_key_env="NO_SUCH"), "NO_SUCH is not set"),
        (ServeConfig(dir=str(folder), quorum=4), "there are 3 members"),
        (ServeConfig(dir=str(folder), port=port), r"serve\.port=\d+ cannot be used"),
    ):
        with pytest.raises(ValueError, match=message), live(config):
            pass


@pytest.mark.parametrize("name", ["meta.json", "pytorch_model.bin", "MODELING.PY"])
def test_a_folder_with_pickles_code_or_a_way_out(name, tmp_path) -> None:
    checkpoint = tmp_path / "member"
    checkpoint.mkdir()
    (checkpoint / name).write_text('{"checkpoint": "/etc", "trust_remote_code": true}')
    unsafe = write_folder(tmp_path / "out", {"only": checkpoint})
    config = ServeConfig(dir=str(unsafe), port=0)
    with pytest.raises(ValueError, match="must consist of safetensors"), live(config):
        pass


def test_a_failed_batch_is_an_error_and_the_server_goes_on(url, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(PrecisionEnsemble, "ask", fail)
        assert post(url, {"prompt": "x", **CHOICE}).status_code == 500
    assert post(url, {"prompt": "x", **CHOICE}).status_code == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
FIELDS = (
    *("model", "prompt", "messages", "tools", "n", "stream", "stream_options", "logprobs"),
    *("top_logprobs", "structured_outputs", "guided_choice", "response_format", "ptsearch"),
)


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON | st.just(LABELS)), st.booleans())
def test_whatever_is_asked_is_a_query_or_a_clear_error(fields, chat) -> None:
    body = json.dumps(fields).encode()
    try:
        asked, form = openai_api.parse(body, chat, "out", 1000)
    except openai_api.ApiError as error:
        assert 400 <= error.status < 500
        assert error.body()["error"]["message"]
    else:
        assert asked.question.labels
        assert form.chat == chat
