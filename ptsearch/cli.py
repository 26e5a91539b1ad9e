"""`python -m ptsearch +study=pareto`: composes the config and runs the job that was appended."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
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
from ptsearch.evaluation.workers import WorkerError, quiet_libraries
from ptsearch.shared import refuse_password

USAGE = """ptsearch: which job? Append one of

  +study=pareto                                        search the ensembles of the pool
  +study=slo study.max.memory_gb=4                     the best ensemble within limits
  +study=benchmark | +study=paper                      the published experiments
  +check=model model=hub model.repo=OWNER/NAME         what a model's tokenizer and shapes mean
  +build=pool                                          build the pool only
  +evaluate=variant evaluate.variant=LABEL             evaluate one variant (none = dense)
  +export=ensemble export.study=NAME export.out=DIR    write the chosen ensemble
  +serve=local|gateway serve.dir=DIR                   answer behind an OpenAI-compatible endpoint
  +rescore=replies rescore.replies=FILE                score replies recorded elsewhere
  +cache=list|verify|prune                             what the cache holds, and free some of it

and any overrides (model=, pool=, benchmarks=, study.trials=50); --help lists the choices."""
FAILED = 2  # exit status of an error that the user can mend
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM

Given = TypeVar("Given")


def main() -> None:
    """The `ptsearch` script."""
    quiet_libraries()
    ConfigStore.instance().store(name="schema", node=Config)
    try:
        for argument in sys.argv[1:]:  # before Hydra writes them into a folder of its own
            refuse_password(*argument.partition("=")[::2])
        if not any(argument.startswith("-") for argument in sys.argv[1:]):
            _make_runs(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(_complain(error))
    if not {"-m", "--multirun"} & set(sys.argv):  # there `a,b` is a sweep
        sys.argv[1:] = [quoted(argument) for argument in sys.argv[1:]]
    try:
        _composed()
    except SystemExit as stop:  # Hydra ends with 1 for a config that does not compose
        sys.exit(FAILED if stop.code == 1 else stop.code)


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def _composed(raw: DictConfig) -> None:
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        _run(raw)
        return
    if status := ended(_run, raw):
        sys.exit(status)


def _make_runs(arguments: Sequence[str]) -> None:
    """The folder that Hydra writes to. OSError here is two lines, in Hydra a traceback."""
    given = [a.partition("=")[2] for a in arguments if a.startswith("runs_dir=")]
    if any(argument.startswith("+") for argument in arguments):
        Path((given or ["mlruns"])[-1].strip("'\""), "hydra").mkdir(parents=True, exist_ok=True)


def ended(job: Callable[[Given], None], given: Given) -> int:
    """Exit status of a job; in two lines why it could not be done, or that it was stopped."""
    try:
        job(given)
    except (ValueError, OSError, ImportError, WorkerError, OmegaConfBaseException) as error:
        return _complain(error)
    except KeyboardInterrupt as stop:
        sys.stderr.write("\nptsearch: stopped; run the same command again to go on\n")
        return TERMINATED if isinstance(stop, _Terminated) else INTERRUPTED
    return 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a job as Ctrl-C does."""


def _terminate(*_: object) -> None:
    raise _Terminated


def _run(raw: DictConfig) -> None:
    config: Any = OmegaConf.to_object(raw)
    asked = [job for job in JOBS if getattr(config, job) is not None]
    if len(asked) != 1:
        if asked:
            raise ValueError(f"one job at a time, got {' and '.join('+' + job for job in asked)}")
        sys.stdout.write(USAGE + "\n")
        return
    config.overrides = list(HydraConfig.get().overrides.task)
    config.baseline_models = (
        [_model(name) for name in config.study.baselines] if config.study else []
    )
    if config.serve:
        from ptsearch import serve

        serve.run(config)
        return
    from ptsearch import jobs

    signal.signal(signal.SIGTERM, _terminate)
    jobs.JOBS[asked[0]](config)


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
