"""Every command of the documents is run on a tiny model, or listed with why it is not."""

import json
import re
import shlex
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
from command import ptsearch
from test_documents import ROOT, commands

# What a command has in it -> why no test runs it. All of them are composed (test_documents.py).
NOT_RUN = {
    "model=hub": "the Hugging Face hub",
    "calibration=hub": "the Hugging Face hub",
    "benchmarks=paper": "published data",
    "benchmarks.root=": "published data",
    "engine=vllm": "vLLM in an environment of its own",
    "compute=ray": "a cluster of Ray",
    "env:": "database servers",
    "+serve=gateway": "engines that serve the members",
    "+serve=local": "runs until it is stopped; tests/serve/test_local.py",
    "export.sign=": "a key; tests/deploy/test_signing.py",
    "+verify=": "a signed export; tests/deploy/test_signing.py",
    "+gate=": "its exit status is the verdict; tests/test_gate.py",
    "method: median": "the reader's own package; tests/test_documents.py runs its code",
}
# A second or a few each; the others, minutes together, are run by make test-slow.
QUICK = ("+export", "+build", "+check", "+evaluate", "+study=slo", "sampler=", "vote=soft")
# Of a study that takes seconds, where the command says nothing else.
TINY = {
    "pool.variants": "[{method: [rtn, gptq], bits: 4, sym: false}]",
    "calibration.samples": "4",
    "calibration.length": "64",
    "benchmarks.limit": "10",
    "+benchmarks.mode": "{*: choice}",
    "latency.prompts": "2",
}
OF_STUDY = {"study.need_skill": "false", "study.min_skill": "flag"}
# What takes long or what a random model cannot reach.
LESS = {
    r"study\.trials=\d+": "study.trials=3",
    r"study\.min\.(\w+)=\d+": r"study.min.\1=0",
    r"group_size=128": "group_size=32",
    r"calibration\.samples=\d+": "calibration.samples=4",
    r"FILE\s+(calibration.rendering=chat)": r"CHAT.jsonl \1",
    "smallest_as_good_as_dense": "knee",  # four samples prove nothing
}
ALONE = "python -m ptsearch"  # lists the jobs: tests/test_cli.py
RUN = [c for c in commands() if c != ALONE and not any(part in c for part in NOT_RUN)]
LLAMACPP = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="needs llama.cpp")
MARKED = [
    pytest.param(
        c,
        marks=([] if any(part in c for part in QUICK) else [pytest.mark.slow])
        + ([LLAMACPP] if "llamacpp" in c or "pool=gguf" in c else []),
    )
    for c in RUN
]


def arguments(command: str, names: Mapping[str, str]) -> list[str]:
    """Of the command line, small, with the reader's own `names` filled in."""
    for name, value in names.items():
        command = command.replace(name, value)
    for pattern, less in LESS.items():
        command = re.sub(pattern, less, command)
    given = shlex.split(command, comments=True)[3:]
    if given[0].startswith(("+cache", "+export")):
        return given
    small = {**TINY, **(OF_STUDY if given[0].startswith("+study=") else {})}
    if given[0] == "+study=pareto":
        small["study.trials"] = "2"
    if given[0] == "+study=paper":
        small["pool.variants"] = "[{method: rtn, bits: [3, 4, 8]}]"
    if not any(each.startswith("model=") for each in given):
        small = {"model": "path", "model.path": names["FOLDER"], **small}
    taken = {each.partition("=")[0] for each in given}
    return [*(f"{key}={value}" for key, value in small.items() if key not in taken), *given]


@pytest.fixture(scope="module")
def names(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the documents call it -> what it is here, with a study to go on from."""
    folder = tmp_path_factory.mktemp("reader")
    names = {"FOLDER": str(tiny_model), "=NAME": f"=pareto-{tiny_model.name}-default-pocket"}
    for study in ("pareto-smollm2-default-pocket", "complaints"):
        names[f"export.study={study}"] = f"export.study{names['=NAME']}"
    names["examples/"] = f"{ROOT}/examples/"
    with pytest.MonkeyPatch.context() as patch:
        assert ptsearch(patch, folder, *arguments("python -m ptsearch +study=pareto", names)) == 0
    for place in ("DIR", "my_conf"):  # models of the reader's
        (folder / place / "model").mkdir(parents=True)
        for name in ("NAME", "mine"):
            text = f"name: {name}\nsource: path\npath: {tiny_model}\n"
            (folder / place / "model" / f"{name}.yaml").write_text(text)
    (folder / "FILE").write_text("A line of text to calibrate on.\n" * 400)
    turns = [
        {"role": "user", "content": "Why? " * 40},
        {"role": "assistant", "content": "So. " * 40},
    ]
    (folder / "CHAT.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 40)
    for built in (folder / "mlruns" / "cache" / "variants").iterdir():
        if "gptq" in (built / "meta.json").read_text():
            shutil.copytree(built, folder / "old" / "model-4bit")
            break
    return {**names, "LABEL": "none", ".": str(folder)}


def test_every_reason_is_needed() -> None:
    for part in NOT_RUN:
        assert any(part in command for command in commands()), part
    assert len(RUN) > len(commands()) / 2


@pytest.mark.parametrize("command", MARKED)
def test_a_command_runs(command, names, monkeypatch) -> None:
    folder = Path(names["."])
    if "+export" in command:  # writes a folder that must not exist
        shutil.rmtree(folder / "chosen", ignore_errors=True)
    known = {name: value for name, value in names.items() if name != "."}
    assert ptsearch(monkeypatch, folder, *arguments(command, known)) == 0
