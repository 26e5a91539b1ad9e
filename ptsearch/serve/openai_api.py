"""Requests and responses in the OpenAI API's shape: a question with labels in, a vote out.

Labels are `structured_outputs: {choice: [...]}` (vLLM's), the older `guided_choice`, or a
`response_format` of type `json_schema` whose schema is an enum of strings or an object with one
such property. A label is put behind a text prompt with a space between, unless one is there.

`ptsearch` in a response holds what each member said. In a request it may hold `lead` (the text
between prompt and label), `max_new_tokens` (members then reply freely, and may refuse), `refusal`
(error, label, veto) and `veto` (members whose refusal decides).
"""

import json
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple, TypedDict

from ptsearch.benchmarks.parsing import Question
from ptsearch.config import REFUSALS
from ptsearch.deploy.query import Query, Turns, question_of
from ptsearch.serve.replies import Reply, VoteResult

MAX_LABELS = 256
MAX_LABEL = 1000  # characters: what scoring a label takes grows with their square
MAX_LABELS_TEXT = 20_000  # characters of all labels: replies are read with a pattern of them
MAX_REPLY = 256  # tokens
OPTIONS = ("lead", "max_new_tokens", "refusal", "veto")  # of the extension field
NEVER = -9999.0  # OpenAI's log-probability of what did not occur
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
NO_VOTE = "no answer won: members refused, or their replies could not be read"
HOW = (
    "give the labels as structured_outputs={'choice': [...]} or as a response_format of type "
    "json_schema with an enum of strings"
)
KINDS = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """What the client is told: a status and an error body in OpenAI's shape."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code

    def body(self) -> dict[str, object]:
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {"error": {"message": str(self), "type": kind, "param": None, "code": self.code}}


class Form(NamedTuple):
    """How the answer is to be written."""

    chat: bool
    json_key: str | None = None  # of a JSON object; "" = a JSON string; None = the bare label
    logprobs: int | None = None  # how many alternatives; None = no log-probabilities
    stream: bool = False
    stream_usage: bool = False


class Completion(TypedDict):
    """The body of a response, or of a chunk of it."""

    id: str
    object: str
    created: int
    model: str
    choices: list[dict[str, object]]
    usage: dict[str, int] | None  # None in the chunks but the last
    ptsearch: dict[str, object]


def parse(body: bytes, chat: bool, model: str, max_prompt: int) -> tuple[Query, Form]:
    """The query of a request to the ensemble named `model`, and the form of its answer.

    ApiError 4xx: not JSON, a field of the wrong type, no labels, or more than a vote can do.
    """
    asked = _object(body)
    check_model(asked.get("model", model), model)
    if any(asked.get(key) for key in ("tools", "functions")):
        raise ApiError(400, "tools are not supported: an ensemble votes on labels", "unsupported")
    if asked.get("n", 1) not in (1, None) or asked.get("best_of", 1) not in (1, None):
        raise ApiError(400, "n must be 1: a vote has one outcome", "unsupported")
    labels, json_key = _labels(asked)
    prompt = _turns(asked) if chat else _text(asked)
    query = _query(prompt, labels, asked.get("ptsearch"))
    if query.size > max_prompt:
        raise ApiError(
            400,
            f"prompt and labels have {query.size} characters, {max_prompt} are allowed",
            "context_length_exceeded",
        )
    options = asked.get("stream_options") or {}
    usage = isinstance(options, dict) and bool(options.get("include_usage"))
    form = Form(chat, json_key, _logprobs(asked, chat), asked.get("stream") is True, usage)
    return query, form


def check_model(asked: object, model: str) -> None:
    if asked != model:
        raise ApiError(
            404, f"the model {asked!r} does not exist; there is {model!r}", "model_not_found"
        )


def response(
    labels: Sequence[str], form: Form, model: str, vote: VoteResult, told: Mapping[str, object]
) -> Completion:
    """The response body; `told` goes into its extension field."""
    label = None if vote.code < 0 else labels[vote.code]
    content = None if label is None else written(label, form.json_key)
    choice: dict[str, object] = {"index": 0, "finish_reason": "stop", "logprobs": None}
    if form.logprobs is not None and label is not None:
        choice["logprobs"] = _shares(labels, vote, form)
    if form.chat:
        refusal = NO_VOTE if content is None else None
        choice["message"] = {"role": "assistant", "content": content, "refusal": refusal}
    else:
        choice["text"] = content or ""
    prompt_tokens, new_tokens = vote.tokens
    return {
        "id": f"{'chatcmpl' if form.chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": "chat.completion" if form.chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": new_tokens,
            "total_tokens": prompt_tokens + new_tokens,
        },
        "ptsearch": {"vote": label, **told},
    }


def events(whole: Completion, form: Form) -> bytes:
    """The response as server-sent events: a vote comes in one piece."""
    choice = dict(whole["choices"][0])
    if form.chat:
        choice["delta"] = choice.pop("message")
        whole = {**whole, "object": "chat.completion.chunk"}
    chunks: list[Completion] = [{**whole, "choices": [choice], "usage": None}]
    if form.stream_usage:
        chunks.append({**whole, "choices": []})
    lines = [json.dumps(chunk) for chunk in chunks] + ["[DONE]"]
    return "".join(f"data: {line}\n\n" for line in lines).encode()


def members(names: Sequence[str], labels: Sequence[str], replies: Sequence[Reply]) -> list[object]:
    """What each member said, for the extension field."""
    return [
        {
            "member": name,
            "outcome": reply.outcome,
            "answer": labels[reply.code] if reply.code >= 0 else None,
            "ms": round(reply.ms, 2),
        }
        | ({"note": reply.note} if reply.note else {})
        for name, reply in zip(names, replies, strict=True)
    ]


def written(label: str, json_key: str | None) -> str:
    if json_key is None:
        return label
    return json.dumps({json_key: label} if json_key else label, ensure_ascii=False)


def _object(body: bytes) -> dict[str, object]:
    try:
        asked = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not UTF-8") from None
    except (ValueError, RecursionError):  # a number of thousands of digits is a ValueError
        raise ApiError(400, "the body is not JSON") from None
    if not isinstance(asked, dict):
        raise ApiError(400, "the body must be a JSON object")
    try:
        json.dumps(asked, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # JSON can escape half of a surrogate pair, which no tokenizer takes
        raise ApiError(400, "the body holds a lone surrogate, which is no text") from None
    return asked


def _labels(asked: Mapping[str, object]) -> tuple[tuple[str, ...], str | None]:
    """(labels, JSON key of the answer)."""
    structured, json_key = asked.get("structured_outputs"), None
    if isinstance(structured, dict) and structured.get("choice") is not None:
        labels = structured["choice"]
    elif asked.get("guided_choice") is not None:
        labels = asked["guided_choice"]
    else:
        labels, json_key = _schema(asked.get("response_format"))
    try:
        labels = question_of(labels).labels
    except ValueError as error:
        raise ApiError(400, f"{error}; {HOW}", "invalid_labels") from None
    if len(labels) > MAX_LABELS:
        raise ApiError(400, f"more than {MAX_LABELS} labels", "invalid_labels")
    if max(map(len, labels)) > MAX_LABEL or sum(map(len, labels)) > MAX_LABELS_TEXT:
        raise ApiError(
            400,
            f"a label may have {MAX_LABEL} characters, all together {MAX_LABELS_TEXT}",
            "invalid_labels",
        )
    return labels, json_key


def _schema(form: object) -> tuple[object, str]:
    """(the enum of a response_format, "" or the property that it belongs to)."""
    schema = form.get("json_schema") if isinstance(form, dict) else None
    schema = schema.get("schema") if isinstance(schema, dict) else None
    if not isinstance(schema, dict):
        raise ApiError(400, f"an ensemble votes on labels, free text has none: {HOW}", "no_labels")
    if isinstance(schema.get("enum"), list):
        return schema["enum"], ""
    properties = schema.get("properties")
    if isinstance(properties, dict) and len(properties) == 1:
        ((key, value),) = properties.items()
        value = _referred(value, schema.get("$defs"))
        if key and isinstance(value, dict) and isinstance(value.get("enum"), list):
            return value["enum"], key
    raise ApiError(400, f"the schema is no enum, and no object with one enum: {HOW}", "no_labels")


def _referred(value: object, definitions: object) -> object:
    """What `{"$ref": "#/$defs/NAME"}` stands for, as pydantic writes an Enum."""
    name = value.get("$ref") if isinstance(value, dict) else None
    if isinstance(name, str) and isinstance(definitions, dict):
        return definitions.get(name.removeprefix("#/$defs/"))
    return value


def _turns(asked: Mapping[str, object]) -> Turns:
    messages = asked.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages must be a list of at least one message")
    turns = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            raise ApiError(400, f"a message's role must be one of {', '.join(ROLES)}")
        turns.append({"role": ROLES[role], "content": _content(message.get("content"))})
    return turns


def _content(content: object) -> str:
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [text for text in parts if isinstance(text, str)]
        content = "".join(texts) if len(texts) == len(parts) else None
    if not isinstance(content, str):
        raise ApiError(400, "a message's content must be text")
    return content


def _text(asked: Mapping[str, object]) -> str:
    prompt = asked.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise ApiError(400, "prompt must be one text")
    return prompt


def _query(prompt: str | Turns, labels: tuple[str, ...], options: object) -> Query:
    options = {} if options is None else options
    may = (
        f"ptsearch may hold lead, a text, max_new_tokens, 0 to {MAX_REPLY}, refusal, one of "
        f"{', '.join(REFUSALS)}, and veto, a number of members"
    )
    if not isinstance(options, dict):
        raise ApiError(400, may)
    for key in options.keys() - set(OPTIONS):
        near = get_close_matches(key, OPTIONS, 1, 0.0)[0]
        raise ApiError(400, f"ptsearch has no {key!r}: did you mean {near}? {may}")
    lead, new = options.get("lead"), options.get("max_new_tokens", 0)
    refusal, veto = options.get("refusal", ""), options.get("veto", 1)
    typed = isinstance(refusal, str) and type(veto) is int
    if not (typed and isinstance(lead, str | None) and type(new) is int) or new > MAX_REPLY:
        raise ApiError(400, may)
    if lead is None and isinstance(prompt, str):
        spaced = prompt[-1:].isspace() or any(label[0].isspace() for label in labels)
        lead = "" if spaced else " "
    try:
        question = Question(labels)
        return Query(prompt, question, lead, new, refusal=refusal, veto=veto, apart=True)
    except ValueError as error:
        raise ApiError(400, str(error)) from None


def _logprobs(asked: Mapping[str, object], chat: bool) -> int | None:
    value = asked.get("logprobs")
    if chat:
        value = (asked.get("top_logprobs") or 0) if value else None
    if value is None or value is False:
        return None
    if not isinstance(value, int) or not 0 <= value <= MAX_LABELS:
        raise ApiError(400, "the number of log-probabilities must be an integer from 0 on")
    return int(value)


def _shares(labels: Sequence[str], vote: VoteResult, form: Form) -> dict[str, object]:
    """Logarithms of vote shares, the most frequent labels first."""
    logs = [math.log(share) if share else NEVER for share in vote.shares]
    best = sorted(range(len(labels)), key=lambda code: (code != vote.code, -vote.shares[code]))
    top = best[: form.logprobs]
    if not form.chat:
        return {
            "tokens": [labels[vote.code]],
            "token_logprobs": [logs[vote.code]],
            "top_logprobs": [{labels[code]: logs[code] for code in top}],
            "text_offset": [0],
        }

    def entry(code: int) -> dict[str, object]:
        label = labels[code]
        return {"token": label, "logprob": logs[code], "bytes": list(label.encode())}

    return {
        "content": [{**entry(vote.code), "top_logprobs": [entry(code) for code in top]}],
        "refusal": None,
    }
