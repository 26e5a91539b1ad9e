"""Every key of the configuration with default and comment: `--help`, the documents' reference.

Comments are those of the dataclasses in `config.py`, else those of the files under `conf/`.
"""

import dataclasses
import inspect
import re
import typing
from pathlib import Path
from typing import NamedTuple

from ptsearch.config import CONF, JOBS, Config
from ptsearch.shared import did_you_mean

INTERNAL = {"overrides", "baseline_models", "kind"}  # set by the command line and by jobs
FIELD = re.compile(r"^    (?P<name>\w+): [^#]*?(?:# (?P<comment>.*))?$")
LINE = re.compile(r"^    # (?P<comment>.*)$")
USAGE = """ptsearch: which job? Append one of

  +study=pareto                                        search the ensembles of the pool
  +study=slo study.max.memory_gb=4                     the best ensemble within limits
  +study=benchmark | +study=paper                      the published experiments
  +gate=compressed gate.candidate=DIR                  may it replace the dense model? 0 | 1 | 3
  +check=model model=hub model.repo=OWNER/NAME         what a model's tokenizer and shapes mean
  +check=benchmark benchmarks.path=FILE                what a file of your own questions holds
  +build=pool                                          build the pool only
  +evaluate=variant evaluate.variant=LABEL             evaluate one variant (none = dense)
  +export=ensemble export.study=NAME export.out=DIR    write the chosen ensemble
  +verify=export verify.dir=DIR verify.key=PUB         is an exported folder what was signed?
  +serve=local|gateway serve.dir=DIR                   answer behind an OpenAI-compatible endpoint
  +rescore=replies rescore.replies=FILE                score replies recorded elsewhere
  +cache=list|verify|prune                             what the cache holds, and free some of it

and any overrides (model=, pool=, benchmarks=, study.trials=50).
--help lists every choice, --help GROUP explains the keys of one (--help study)."""


class Key(NamedTuple):
    """A key as it is overridden; its default as YAML has it."""

    name: str
    default: str
    comment: str


def groups() -> list[str]:
    """The folders of `conf/` whose choices have keys, in the order of `Config`."""
    return [name for name in typing.get_type_hints(Config) if (CONF / name).is_dir()]


def choices(group: str) -> dict[str, str]:
    """Choice -> what the first line of its file says."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in _files(group)}
    first = re.compile(r"^# (?!@package)(.*)", re.MULTILINE)
    return {name: first.search(text)[1] for name, text in texts.items()}  # type: ignore[index]


def keys(group: str = "") -> list[Key]:
    """The keys of a group; without one, those that belong to none."""
    if group:
        kind = _dataclass(typing.get_type_hints(Config)[group])
        assert kind is not None
        found, files = _keys(kind, f"{group}."), _files(group)
    else:
        known = groups()
        found = [key for key in _keys(Config, "") if key.name.split(".")[0] not in known]
        files = [CONF / "config.yaml"]
    comments = {name: text for path in files for name, text in _of_file(path, group).items()}
    return [key._replace(comment=key.comment or comments.get(key.name, "")) for key in found]


def help_text(group: str = "") -> str:
    """For the terminal. ValueError: there is no such group."""
    if not group:
        lines = [USAGE, ""]
        for name in [*groups(), "published"]:
            plus = "+" if name in (*JOBS, "published") else ""
            lines += ["", *(f"  {plus}{name}={c}: {said}" for c, said in choices(name).items())]
        return "\n".join(lines)
    if group not in groups():
        known = ", ".join(groups())
        near = did_you_mean(group, groups())
        raise ValueError(f"--help: there is no {group}{near}; there are {known}")
    lines = [f"{group}={choice}: {said}" for choice, said in choices(group).items()]
    for key in keys(group):
        lines += ["", f"{key.name} (default {key.default})", f"  {key.comment}"]
    return "\n".join(lines)


def _files(group: str) -> list[Path]:
    return sorted((CONF / group).glob("*.yaml"))


def _keys(kind: type, prefix: str) -> list[Key]:
    hints, comments, found = typing.get_type_hints(kind), _of_class(kind), list[Key]()
    for field in dataclasses.fields(kind):
        nested = _dataclass(hints[field.name])
        if nested and field.name not in INTERNAL:
            found += _keys(nested, f"{prefix}{field.name}.")
        elif field.name not in INTERNAL:
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            comment, known = comments.get(field.name, ""), field.metadata.get("choices", ())
            if known and not all(each in comment for each in known):
                comment = f"{' | '.join(known)}: {comment}".removesuffix(": ")
            found.append(Key(prefix + field.name, _shown(default), comment))
    return found


def _of_file(path: Path, group: str) -> dict[str, str]:
    """Key -> the comment on its line."""
    found = re.findall(r"^(\w+):.*? # (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {f"{group}.{key}" if group else key: comment for key, comment in found}


def _of_class(kind: type) -> dict[str, str]:
    """Field -> the lines of comment above it, and the comment on its line."""
    found, above = dict[str, str](), list[str]()
    for line in inspect.getsource(kind).splitlines():
        if match := LINE.match(line):
            above.append(match["comment"])
        elif match := FIELD.match(line):
            found[match["name"]] = " ".join([*above, *filter(None, [match["comment"]])])
            above = []
    return found


def _dataclass(hint: object) -> type | None:
    """The dataclass in `Class` or `Class | None`."""
    for kind in typing.get_args(hint) or (hint,):
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return kind
    return None


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in value.items()) + "}"
    return '""' if value == "" else str(value)
