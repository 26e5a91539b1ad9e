"""`python -m ptsearch +study=pareto`: composes the config and runs the job that was appended."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ptsearch.config import CONF, JOBS, Config, ModelConfig
from ptsearch.evaluation import early_check
from ptsearch.evaluation.reference import USAGE, help_text
from ptsearch.evaluation.workers import WorkerError, quiet_libraries
from ptsearch.shared import did_you_mean, refuse_password

FULL_ERROR = "HYDRA_FULL_ERROR"
TRACEBACKS = os.environ.get(FULL_ERROR) == "1"  # asked for by the user
FAILED = 2  # exit status of an error that the user can mend
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM

Given = TypeVar("Given")


def main() -> None:
    """The `ptsearch` script."""
    quiet_libraries()
    ConfigStore.instance().store(name="schema", node=Config)
    try:
        for argument in sys.argv[1:]:  # before Hydra writes them into a file
            refuse_password(*argument.partition("=")[::2])
        if {"--help", "-h"} & set(sys.argv):
            groups = [each.strip("+") for each in sys.argv[1:] if each[:1] != "-"]
            sys.stdout.write(help_text(*groups[:1]) + "\n")
            return
        _need_job(sys.argv[1:])
    except ValueError as error:
        sys.exit(_complain(error))
    if not {"-m", "--multirun"} & set(sys.argv):  # there `a,b` is a sweep
        sys.argv[1:] = [quoted(argument) for argument in with_name(sys.argv[1:])]
    os.environ[FULL_ERROR] = "1"  # Hydra then raises what it would print
    try:
        _composed()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if TRACEBACKS:
            raise
        sys.exit(_complain(ValueError(_advice(sys.argv[1:]) or _first_cause(error))))
    finally:
        if not TRACEBACKS:
            del os.environ[FULL_ERROR]


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def _composed(raw: DictConfig) -> None:
    if status := _run(raw) if TRACEBACKS else ended(_run, raw):
        sys.exit(status)


def ended(job: Callable[[Given], int], given: Given) -> int:
    """Exit status of a job; in two lines why it could not be done, or that it was stopped."""
    try:
        return job(given)
    except (ValueError, OSError, ImportError, WorkerError, OmegaConfBaseException) as error:
        return _complain(error)
    except KeyboardInterrupt as stop:
        sys.stderr.write("\nptsearch: stopped; run the same command again to go on\n")
        return TERMINATED if isinstance(stop, _Terminated) else INTERRUPTED


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a job as Ctrl-C does."""


def _terminate(*_: object) -> None:
    raise _Terminated


def _run(raw: DictConfig) -> int:
    """Exit status of the job."""
    config: Any = OmegaConf.to_object(raw)
    _refuse_unknown(config)
    config.overrides = list(HydraConfig.get().overrides.task)
    asked = [job for job in JOBS if getattr(config, job) is not None]
    if len(asked) != 1:
        if asked:
            raise ValueError(f"one job at a time, got {' and '.join('+' + job for job in asked)}")
        if config.overrides:
            raise ValueError("which job? Append one, such as +study=pareto")
        sys.stdout.write(USAGE + "\n")
        return 0
    config.baseline_models = (
        [_model(name) for name in config.study.baselines] if config.study else []
    )
    if config.serve:
        from ptsearch import serve

        serve.run(config)
        return 0
    known = early_check.check(config)
    if config.check and config.check.name == "benchmark":
        sys.stdout.write(f"{known}\n")
        return 0
    from ptsearch import jobs

    signal.signal(signal.SIGTERM, _terminate)
    return jobs.JOBS[asked[0]](config) or 0


def _need_job(arguments: Sequence[str]) -> None:
    """ValueError: a key of a job that is not asked for, at which Hydra fails."""
    keys = [argument.partition("=")[0].lstrip("+~") for argument in arguments]
    for key in keys:
        job = key.partition(".")[0]
        if job in JOBS and job not in keys and not any(key[:1] == "-" for key in keys):
            raise ValueError(f"{key} belongs to a job: append +{job}={'|'.join(_choices(job))}")


def _refuse_unknown(config: Any, prefix: str = "") -> None:
    """ValueError: a key that no job reads, which `+` has appended."""
    names = [field.name for field in fields(config)]
    for name, value in vars(config).items():
        if name not in names:
            raise ValueError(f"there is no key {prefix}{name}{did_you_mean(name, names)}")
        if is_dataclass(value):
            _refuse_unknown(value, f"{prefix}{name}.")


def _advice(arguments: Sequence[str]) -> str:
    """What to write instead of the first override that names nothing; "" = all of them do."""
    if any(each.startswith(("-c", "--config")) for each in arguments):
        return ""  # other folders may have what these have not
    overrides = [each.partition("=") for each in arguments if "=" in each and each[0] != "-"]
    chosen = []
    for key, _, value in overrides:
        name = key.lstrip("+~")
        if (choices := _choices(name)) and value.strip("'") not in choices:
            meant = did_you_mean(value, choices)
            return f"there is no {name}={value}{meant}; {name} is one of {', '.join(choices)}"
        if name in JOBS and not key.startswith("+"):
            return f"{name} is a job, which is appended: +{name}={value}"
        if choices:
            chosen.append(f"{key}={value}")
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            config = hydra.compose("config", chosen)
        except HydraException:
            return ""
    known = list(_keys(OmegaConf.to_container(config)))
    for key, _, _ in overrides:
        name = key.lstrip("+~")
        parent = OmegaConf.select(config, name.rpartition(".")[0]) if "." in name else config
        free = key.startswith("+") and OmegaConf.get_type(parent) is dict
        if name not in known and not _choices(name) and not free and name[:6] != "hydra.":
            return f"there is no key {name}{did_you_mean(name, known)}"
    return ""


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml")) if group else []


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    """All keys of a composed config, dotted."""
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def _first_cause(error: BaseException) -> str:
    """Hydra's own words, with OmegaConf's where it is about a value."""
    said, cause = str(error), error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        what = said.partition("\n")[0].removeprefix("Error merging override ")
        return f"{what}: {str(cause).partition(chr(10))[0]}"
    return said


def with_name(arguments: Sequence[str]) -> list[str]:
    """With the folder's or repository's name for a model that was given none. Two that are called
    the same are told apart by their contents: see `search.study.find_view`.
    """
    given = dict(each.partition("=")[::2] for each in arguments if "=" in each)
    key = {"path": "model.path", "hub": "model.repo"}.get(given.get("model", ""), "")
    place = given.get(key, "").strip("'\"")
    if not place or "model.name" in given:
        return list(arguments)
    beside = arguments.index(f"{key}={given[key]}")  # Hydra takes no overrides on both sides of --
    return [*arguments[:beside], f"model.name={Path(place).resolve().name}", *arguments[beside:]]


def quoted(argument: str) -> str:
    """An override whose value Hydra's grammar does not take as it is, such as a path with `=`, `(`
    or a comma or beyond ASCII, with that value in quotes; anything else as it is.
    """
    key, equals, value = argument.partition("=")
    if not equals or key.startswith("-") or value[:1] in {"[", "{", "'", '"', ""}:
        return argument
    parser = OverridesParser.create()
    try:
        if not parser.parse_override(argument).is_sweep_override():
            return argument
    except HydraException:
        pass
    escaped = value.replace("'", "\\'")
    return f"{key}='{escaped}'"


def _model(name: str) -> Any:
    """The model that `model={name}` would choose, from the same places."""
    sources = [
        Path(source.path)
        for source in HydraConfig.get().runtime.config_sources
        if source.schema == "file"
    ]
    files = [source / "model" / f"{name}.yaml" for source in sources]
    for file in files:
        if file.is_file():
            return OmegaConf.to_object(OmegaConf.merge(ModelConfig, OmegaConf.load(file)))
    raise ValueError(f"study.baselines: there is no model {name!r}; expected {files[0]}")


def _complain(error: BaseException) -> int:
    lines = [line for line in str(error).splitlines() if line.strip()]
    message = "\n".join(lines[:2]) or type(error).__name__
    sys.stderr.write(f"ptsearch: {message}\n")
    return FAILED
