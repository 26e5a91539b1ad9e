"""An exported ensemble answers as its members do, and does not load when it is not whole."""

import shutil
from pathlib import Path

import members as exported_members
import pandas as pd
import pytest
import torch
import yaml

from ptsearch import engine as engines
from ptsearch import store
from ptsearch.benchmarks.parsing import Question
from ptsearch.config import EngineConfig
from ptsearch.deploy.ensemble import PrecisionEnsemble, _Registered, shares
from ptsearch.deploy.query import Query
from ptsearch.models.prompting import Prompter
from ptsearch.voting.votes import vote

folder = exported_members.folder  # a fixture
PROMPTS = ["Is water wet?", "Is fire cold? Think.", [{"role": "user", "content": "Is it?"}]]
LABELS = ["no", "yes", "maybe"]


@pytest.fixture(scope="module")
def ensemble(folder: Path) -> PrecisionEnsemble:
    return PrecisionEnsemble.from_pretrained(folder)


def test_each_member_says_what_it_says_alone(ensemble, folder) -> None:
    answers = ensemble.answer(PROMPTS[:2], LABELS)
    for member in ("high", "middle", "low"):
        alone = engines.load(folder / "members" / member, EngineConfig(dtype="float32"))
        prompts = [Prompter(alone.tokenizer).prompt(prompt) for prompt in PROMPTS[:2]]
        labels = [alone.tokenizer(f" {label}").input_ids for label in LABELS]
        rows = engines.score(alone, prompts, [labels] * 2, lambda *_: None)
        for answer, row in zip(answers, rows, strict=True):
            assert answer.said[member].logprobs == pytest.approx(row, abs=1e-4)
            assert answer.members[member] == LABELS[row.index(max(row))]


def test_the_answer_is_the_members_vote(ensemble) -> None:
    for answer in ensemble.answer(PROMPTS, LABELS):
        assert list(answer.members) == ensemble.members == ["high", "middle", "low"]
        codes = [LABELS.index(given) for given in answer.members.values() if given]
        assert answer.label == LABELS[vote(codes)]
        assert sum(answer.votes.values()) == 3


def test_what_leads_to_a_label(ensemble) -> None:
    usual = ensemble.answer(PROMPTS[:2], LABELS)
    for lead, same in ((" ", True), ("\n", False)):
        for one, other in zip(usual, ensemble.answer(PROMPTS[:2], LABELS, lead=lead), strict=True):
            for member in ensemble.members:
                alike = one.said[member].logprobs == pytest.approx(other.said[member].logprobs)
                assert alike == same


def test_asking_lazily_gives_the_same_labels(ensemble) -> None:
    prompts = [f"{n} is a number?" for n in range(30)]
    full, lazy = (ensemble.answer(prompts, LABELS, lazy=lazy) for lazy in (False, True))
    assert [answer.label for answer in lazy] == [answer.label for answer in full]
    assert any(len(answer.members) < 3 for answer in lazy)


def test_replies_are_read_and_may_refuse(ensemble) -> None:
    answer = ensemble.answer(PROMPTS[:1], LABELS, max_new_tokens=3)[0]
    assert answer.label is None  # noise names no label
    assert answer.votes == {}
    assert all(said.reply and not said.logprobs for said in answer.said.values())


def test_equal_tensors_are_in_memory_once(ensemble) -> None:
    high, low = (ensemble.engines[label].runner.model for label in ("high", "low"))
    embeddings = [model.get_input_embeddings().weight for model in (high, low)]
    assert embeddings[0].data_ptr() == embeddings[1].data_ptr()
    heads = [model.get_output_embeddings().weight for model in (high, low)]
    assert heads[0].data_ptr() == heads[1].data_ptr() == embeddings[0].data_ptr()


@pytest.mark.parametrize(
    ("prompts", "labels", "message"),
    [
        (["x"], [], "labels must be a list"),
        (["x"], ["yes"], "labels must be a list"),
        (["x"], ["yes", "yes"], "labels must be a list"),
        (["x"], ["yes", "yes "], "labels must be a list"),
        (["x"], "yes", "labels must be a list .*, got 'yes'"),
        (["x"], b"yes", "labels must be a list"),
        (["x"], [1, 2], "labels must be a list"),
        (["x"], {"yes": 1, "no": 0}, "labels must be a list"),
        (["x"], None, "labels must be a list"),
        (["x"], ["yes", "no", "not so"], "'not so' begins as 'no' does, which always beats it"),
        ("Is it?", LABELS, "prompts must be a list, .* got 'Is it"),
        (b"Is it?", LABELS, "prompts must be a list"),
        (None, LABELS, "prompts must be a list"),
        ([b"Is it?"], LABELS, "a prompt must be a text or a list of chat turns, got b'Is it"),
        ([7], LABELS, "a prompt must be"),
        ([None], LABELS, "a prompt must be"),
        ([{"role": "user", "content": "x"}], LABELS, "a prompt must be"),  # one conversation
        (["x", ""], LABELS, "the prompt is empty"),
        ([[{"role": "user", "content": " "}]], LABELS, "the prompt is empty"),
        ([[{"content": "x"}]], LABELS, "a chat turn must be"),
        (["x" * 9000], LABELS, "context is 8192"),
    ],
)
def test_bad_questions(ensemble, prompts, labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        ensemble.answer(prompts, labels)


def test_no_prompts_are_no_answers(ensemble) -> None:
    assert ensemble.answer([], LABELS) == []


@pytest.mark.parametrize("options", [{"lead": 1}, {"max_new_tokens": "8"}, {"max_new_tokens": -1}])
def test_bad_options(ensemble, options) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ensemble.answer(["x"], LABELS, **options)


AS_RAW = "User: Is it?\nAssistant:"


@pytest.mark.parametrize(
    ("prompt", "texts", "asked"),
    [
        ("chat", "text", "Is it?"),
        ("raw", "text", "Is it?"),
        ("chat", "turns", [{"role": "user", "content": "Is it?"}]),
        ("raw", "turns", AS_RAW),
    ],
)
def test_a_text_is_asked_as_the_study_asked(folder, tmp_path, prompt, texts, asked) -> None:
    """Judged by an ensemble that asks texts as they are and turns through the template."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    plain = PrecisionEnsemble.from_pretrained(folder)
    studied = PrecisionEnsemble.from_pretrained(
        edit(copy, lambda d: d.update(chat={"prompt": prompt, "texts": texts}))
    )
    assert studied.answer(["Is it?"], LABELS) == plain.answer([asked], LABELS)
    assert studied.answer(["Is it?"], LABELS, texts="text") == plain.answer(["Is it?"], LABELS)
    turns = [{"role": "user", "content": "Is it?"}]
    as_turns = plain.answer([AS_RAW if prompt == "raw" else turns], LABELS)
    assert studied.answer([turns], LABELS) == as_turns
    assert as_turns != plain.answer(["Is it?"], LABELS)
    rows = pd.DataFrame({"prompt": ["Is it?"], "labels": [LABELS]})
    said = studied.answer(["Is it?"], LABELS)[0].label
    assert _Registered(studied).predict(rows) == [said]


def edit(folder: Path, change) -> Path:
    """The folder's description changed, and sealed as if it had been written so."""
    path = folder / "ensemble.yaml"
    described = yaml.safe_load(path.read_text())
    change(described)
    path.write_text(yaml.safe_dump(described))
    (folder / store.MANIFEST).unlink()
    store._seal(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="ptsearch-ensemble/0"), "has format 'ptsearch-ensemble/0'"),
        (lambda d: d["members"][0].update(folder="../../etc"), "leaves the folder"),
        (lambda d: d["members"][0].update(folder="/etc"), "leaves the folder"),
        (lambda d: d.update(votes={}), "votes: Extra inputs are not permitted"),
        (lambda d: d["vote"].pop("order"), r"vote\.order: Field required"),
        (lambda d: d["members"][1].update(bytes="many"), r"members\.1\.bytes: Input should be"),
        (lambda d: d["vote"].update(order=["high"]), "must list each member once"),
    ],
)
def test_a_description_that_is_not_ours(folder, tmp_path, change, message) -> None:
    copy = edit(Path(shutil.copytree(folder, tmp_path / "copy")), change)
    with pytest.raises(ValueError, match=message):
        PrecisionEnsemble.from_pretrained(copy)


def test_an_altered_or_incomplete_folder(folder, tmp_path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    weights = copy / "members" / "low" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"altered: .*contents differ"):
        PrecisionEnsemble.from_pretrained(copy)
    weights.unlink()
    with pytest.raises(ValueError, match=r"incomplete or altered: .*missing"):
        PrecisionEnsemble.from_pretrained(copy)
    with pytest.raises(ValueError, match="is not an exported ensemble"):
        PrecisionEnsemble.from_pretrained(tmp_path)


@pytest.mark.parametrize("lanes", [1, 2, 3, 4])
@pytest.mark.parametrize("queries", [1, 2, 7, 16])
@pytest.mark.parametrize("members", ["a", "ab", "abc", "abcde"])
def test_lanes_share_out_every_query_of_every_member_once(members, queries, lanes) -> None:
    parts = shares(members, queries, lanes)
    asked = [(member, place) for member, places in parts for place in places]
    assert sorted(asked) == [(member, place) for member in members for place in range(queries)]
    assert all(len(places) == queries for _, places in parts[: len(members) // lanes * lanes])
    assert len(parts) <= len(members) + (len(members) % lanes) * (lanes - 1)


def test_members_side_by_side_say_the_same(ensemble) -> None:
    queries = [Query(prompt, Question(tuple(LABELS))) for prompt in PROMPTS * 3]
    queries += [Query(PROMPTS[0], Question(("no", "yes")), max_new_tokens=3)]
    threads, alone, told = torch.get_num_threads(), [], {}
    for cores in (1, 2):
        torch.set_num_threads(cores)
        try:
            alone.append(ensemble.ask(queries, told=told.__setitem__))
        finally:
            torch.set_num_threads(threads)
        assert [told.pop(number) for number in range(len(queries))] == alone[-1]
    for one, other in zip(*alone, strict=True):
        assert one.label == other.label
        assert list(one.said) == list(other.said) == ensemble.members
        for member, said in one.said.items():
            assert said.logprobs == pytest.approx(other.said[member].logprobs, abs=1e-4)
            assert said.reply == other.said[member].reply
