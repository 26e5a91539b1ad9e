"""Write the chosen ensemble to a folder, ready to serve; `folder` reads it."""

import errno
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import yaml

from ptsearch import store
from ptsearch.config import LOCAL, ExportConfig
from ptsearch.deploy import manifests, replay_log
from ptsearch.deploy.description import (
    BaseModelInfo,
    ChatInfo,
    Cost,
    Description,
    HalfScores,
    Latency,
    MemberInfo,
    Percentiles,
    VoteInfo,
)
from ptsearch.deploy.folder import DESCRIPTION, SAFE, VERIFY
from ptsearch.deploy.record import FrontRecord, StudyRecord, read_record
from ptsearch.engine.targets import Form, form_of
from ptsearch.evaluation.early_check import free_folder
from ptsearch.models import base_model, loading
from ptsearch.models.prompting import Prompter
from ptsearch.report import certificate
from ptsearch.report.answer import PICKS
from ptsearch.report.rows import LAZY
from ptsearch.search.objectives import costs
from ptsearch.variant import Variant, from_fields
from ptsearch.voting import VOTES

TEMPLATE = "benchmarks.template."  # before the arguments in a study's settings
WRITTEN_WITH = ("ptsearch", "transformers", "compressed-tensors", "torch")
WEIGHTS = (".safetensors", ".gguf")
OTHER_DEVICE = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)  # no hard links there


def write(attributes: Mapping[str, object], config: ExportConfig, cache: Path) -> Path:
    """Write the pick of a study's front; `attributes` are what the study recorded.

    Every member's checksums are verified first. The folder appears whole or not at all.
    """
    out, study = free_folder(config.out), read_record(attributes, config.study)
    row = _chosen(study, config)
    members = {label: _variant(study, label) for label in row.members}
    order = sorted(members, key=lambda label: -members[label].precision)  # stable: pool position
    checkpoints = {label: _checked(cache, label, members[label]) for label in order}
    forms = {label: form_of(members[label], checkpoints[label], config.target) for label in order}
    with store.new_folder(out) as part:
        for label, form in forms.items():
            built = cache / "variants" / members[label].id
            sources = built, checkpoints[label]
            _write_member(members[label], form, sources, part / "members" / label)
        description = _description(study, config, row, forms, part)
        _write(part / DESCRIPTION, yaml.safe_dump(description.to_dict(), sort_keys=False))
        _write(part / "certificate.json", certificate.to_json(row.certificate))
        if study.verify:
            lines = replay_log.lines(replay_log.path_of(cache, study.verify), order)
            _write(part / VERIFY, "".join(json.dumps(line) + "\n" for line in lines))
        for name, text in manifests.texts(description):
            _write(part / name, text)
        (part / "serve.sh").chmod(0o755)
    return out


def choose(front: Sequence[FrontRecord], pick: str) -> FrontRecord:
    """The row of the front for `pick`: a name of `PICKS`, or the start of a run id."""
    named = [row for row in front if pick in row.picks]
    if not named and pick in PICKS:
        made = ", ".join(name for name in PICKS if any(name in row.picks for row in front))
        raise ValueError(f"nothing on this front is its {pick} ({PICKS[pick]}); it has {made}")
    matching = named or [row for row in front if row.run_id.startswith(pick)]
    if len(matching) != 1:
        runs = ", ".join(row.run_id[:8] for row in front)
        raise ValueError(
            f"export.pick must be {', '.join(PICKS)} or a run of the front ({runs}), got {pick!r}"
        )
    return matching[0]


def _chosen(study: StudyRecord, config: ExportConfig) -> FrontRecord:
    """The row to export. ValueError: its vote or its latency cannot be exported."""
    rule = str(study.settings.get("vote.rule", "majority"))
    if rule not in VOTES or not VOTES[rule].deployable:
        served = ", ".join(name for name, known in VOTES.items() if known.deployable)
        raise ValueError(f"study {config.study!r} has vote={rule}: only vote={served} is served")
    row = choose(study.front, config.pick)
    if not row.latency and not math.isnan(row.search["latency_ms"]):
        raise ValueError(
            f"study {config.study!r} has no latencies of {row.run_id}; run it again, it resumes"
        )
    return row


def _variant(study: StudyRecord, label: str) -> Variant:
    return from_fields(study.variants[label].fields)


def _checked(cache: Path, label: str, variant: Variant) -> Path:
    """The member's checkpoint, verified against the checksums of what was built or imported."""
    folder = cache / "variants" / variant.id
    problems = store.verify_folder(folder)
    if problems:
        raise ValueError(f"member {label} is damaged: {problems[0]}")
    checkpoint, _ = loading.checkpoint_of(folder)  # a ready-made one lies elsewhere
    known = dict(variant.method_args).get("sha256")
    elsewhere = variant.method == "path" and checkpoint != folder
    if elsewhere and base_model.content_hash(checkpoint, cache) != known:
        raise ValueError(f"member {label} is not what the study used: {checkpoint} has changed")
    return checkpoint


def _description(
    study: StudyRecord,
    config: ExportConfig,
    row: FrontRecord,
    forms: Mapping[str, Form],
    folder: Path,
) -> Description:
    """The content of ensemble.yaml; `forms` holds the members in the vote's total order."""
    base, settings = study.base, study.settings
    members = {label: _member(study, label, forms[label], folder) for label in row.members}
    no_scores = (*costs(), "stored_gb", *LAZY)
    return Description(
        study=config.study,
        run=row.run_id,
        target=config.target,
        base_model=BaseModelInfo(
            name=str(settings["model.name"]),
            revision=str(settings["model.revision"]),
            repo=base.repo,
            license=manifests.license_of(base.source, Path(base.path)),
        ),
        vote=VoteInfo(
            order=list(forms),
            ask=study.ask[row.run_id],
            refusal=str(settings.get("benchmarks.refusal.*", "")),
            veto=int(str(settings.get("vote.veto", 1))),
        ),
        chat=_chat(study, folder / members[next(iter(forms))].folder),
        members=list(members.values()),
        scores=HalfScores(
            search={key: v for key, v in row.search.items() if key not in no_scores},
            holdout=row.holdout,
        ),
        unskilled=row.unskilled,
        verdict=str(row.certificate["verdict"]),
        cost=_cost(study, config.target, row, [member.bytes for member in members.values()]),
        benchmarks=base.benchmarks,
        settings=settings,
        written_with={package: version(package) for package in WRITTEN_WITH},
    )


def _chat(study: StudyRecord, checkpoint: Path) -> ChatInfo:
    """How the study made prompts, for engines that apply the template themselves too."""
    settings, tokenizer = study.settings, loading.load_tokenizer(checkpoint)
    asked = ChatInfo(texts=study.base.texts, prompt=str(settings.get("benchmarks.prompt", "chat")))
    if not tokenizer.chat_template:
        return asked
    given = {
        key.removeprefix(TEMPLATE): v for key, v in settings.items() if key.startswith(TEMPLATE)
    }
    prompter = Prompter(tokenizer, given)
    found = {"arguments": prompter.template_arguments, "form": sorted(prompter.form)}
    return asked.model_copy(update=found)


def _member(study: StudyRecord, label: str, form: Form, folder: Path) -> MemberInfo:
    """A member as written to the ensemble's folder."""
    place, variant = folder / "members" / label, study.variants[label]
    return MemberInfo(
        label=label,
        variant=variant.fields,
        id=variant.id,
        folder=f"members/{label}",
        form="stored" if form.stored else "dense bfloat16",
        why=form.why,
        bytes=sum(f.stat().st_size for f in place.iterdir() if f.suffix in WEIGHTS),
        files={path.name: store.sha256_file(path) for path in sorted(place.iterdir())},
    )


def _cost(study: StudyRecord, target: str, row: FrontRecord, sizes: Sequence[int]) -> Cost:
    """Costs in the search next to the dense model's; `sizes` are the members' bytes as written."""
    base, settings = study.base, study.settings
    memory, searched = row.search["memory_gb"], str(settings.get("cost.target", LOCAL))
    apart = (sum(sizes) + len(sizes) * base.kv_bytes) / 1e9
    ways = {way: Percentiles.model_validate(ms) for way, ms in row.latency.items()}
    engine = f"{settings.get('engine.name', 'transformers')} {settings['engine.dtype']}"
    return Cost(
        memory_gb=memory,
        stored_gb=row.search.get("stored_gb", 0.0),
        latency_ms=row.search["latency_ms"],
        calls=row.search["calls"],
        bytes_read=row.search["bytes_read"],
        of_dense=100 * memory / base.memory_gb,
        dense_memory_gb=base.memory_gb,
        dense_bytes=int(1e9 * base.memory_gb) - base.kv_bytes,
        kv_bytes=base.kv_bytes,
        target=searched,
        served_gb=memory if target == searched.removeprefix("vllm_") else apart,
        latency=Latency(engine=engine, **ways),
    )


def _write_member(variant: Variant, form: Form, sources: tuple[Path, Path], out: Path) -> None:
    """The checkpoint and, for the engine, meta.json: what is rounded at run time.

    `sources` are the variant's own folder and that of its weights, which may be the base model's.
    """
    if not form.stored:
        loading.write_dense(sources[1], "bfloat16", out)
        return
    for folder in sources:
        _copy(folder, out)
    if variant.method != "path":
        meta = {"variant": asdict(variant), "checkpoint": ".", "trust_remote_code": False}
        _write(out / store.META, json.dumps(meta, indent=1))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    """The folder's files that can run no code; existing files are kept.

    Weights are hard links where the file system allows; the rest are copies, which can be edited.
    """
    target.mkdir(parents=True, exist_ok=True)
    known = {store.MANIFEST, store.META, *(file.name for file in target.iterdir())}
    for file in sorted(source.iterdir()):
        if not file.is_file() or file.name in known or file.suffix.lower() not in SAFE:
            continue
        if file.suffix in WEIGHTS:
            _link(file, target / file.name)
        else:
            shutil.copy2(file, target / file.name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)  # the hub's cache holds symbolic links
    except OSError as error:
        if error.errno not in OTHER_DEVICE:
            raise
        shutil.copy2(source, target)
