"""A base model compressed one way: its identity, its label, and the pool that a config spans.

The id is a hash of every field, so whatever changes the weights must be a field. The label is for
people and is never parsed.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptsearch.quantize import Method

BUILD_VERSION = 2  # bump when equal fields would give other weights

BACKENDS = ("native", "llmcompressor", "gptqmodel")
ACTORDERS = ("none", "static")
GROUP_SIZES = (32, 64, 128, -1)
ACT_BITS = (16, 8, 4)
KV_BITS = (16, 8, 4, 3, 2)
SEQUENTIAL = ("sequential", "true")  # of method_args: behind layers already quantized
CHOICES: dict[str, tuple[object, ...]] = {
    "backend": BACKENDS,
    "actorder": ACTORDERS,
    "act_bits": ACT_BITS,
    "kv_bits": KV_BITS,
}

KIVI_WINDOW = 32  # newest tokens that KIVI keeps in full precision, where a pool says nothing


def method_of(name: str) -> "Method":
    """The record of a method, by its literals alone before torch is imported. ValueError: there is
    no such method.
    """
    from ptsearch.quantize.method import method_of

    return method_of(name)


@dataclass(frozen=True)
class Variant:
    """One way to compress one base model; `method="none"` is the dense model itself.

    `group_size` is in input columns, -1 = one group per row. `act_bits` and `kv_bits` say how the
    inputs of linear layers and past keys and values are rounded at run time (16 = not at all), the
    last `kv_window` tokens excepted; `decode_schedule` is "" or TOKENS:BITS: after so many tokens
    of a reply the same variant at so many bits takes over. `calibration` is the SHA-256 of the
    calibration text and how it is cut ("" where the method needs none); `seed` draws the samples
    from it. `rounding_seed` draws a stochastic rounding; None rounds to nearest. `method_args` are
    sorted (key, value) pairs that only one method knows.
    """

    model: str
    revision: str
    method: str = "none"
    backend: str = "native"
    bits: int = 16
    group_size: int = -1
    sym: bool = True
    actorder: str = "none"
    damp_percent: float = 0.0
    act_bits: int = 16
    kv_bits: int = 16
    kv_window: int = 0
    decode_schedule: str = ""
    calibration: str = ""
    seed: int = 0
    rounding_seed: int | None = None
    method_args: tuple[tuple[str, str], ...] = ()
    build_version: int = BUILD_VERSION

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {value}")
        method = method_of(self.method)
        if self.decode_schedule:
            self.phases()
        if self.kv_window < 0:
            raise ValueError(f"kv_window must be at least 0, got {self.kv_window}")
        if self.method == "none" and self.acts_at_run_time:
            raise ValueError("method=none is the dense model as it is: rounding needs a method")
        if method.kv and self.kv_bits == 16:
            raise ValueError(f"{self.method} needs kv_bits, one of 8, 4, 3, 2")
        if self.method == "path" and not 1 <= self.bits <= 16:
            raise ValueError(f"{self.label}: bits must be 1 to 16, got bits={self.bits}")
        if method.types and method.types.get(dict(self.method_args).get("type", "")) != self.bits:
            raise ValueError(f"{self.method} needs type, one of {', '.join(method.types)}")
        if not method.dense:
            self._check_method(method)

    def _check_method(self, method: "Method") -> None:
        method.check_bits(self.bits)
        if self.group_size not in GROUP_SIZES:
            raise ValueError(
                f"group_size must be one of {', '.join(map(str, GROUP_SIZES))}, "
                f"got group_size={self.group_size}"
            )
        if not method.grouped and self.group_size != -1:
            raise ValueError(f"{self.method} has no groups, got group_size={self.group_size}")
        if self.rounding_seed is not None and not method.stochastic:
            raise ValueError(f"{self.method} has no stochastic rounding: leave out rounding_seed")

    def phases(self) -> tuple[int, "Variant", "Variant"]:
        """(tokens of a reply, the variant that writes them, the one that writes the rest)."""
        tokens, _, bits = self.decode_schedule.partition(":")
        if not (tokens.isdecimal() and bits.isdecimal() and int(tokens) > 0):
            raise ValueError(
                "decode_schedule must be TOKENS:BITS, such as 8:3 (after 8 tokens of a reply "
                f"3 bits take over), got {self.decode_schedule!r}"
            )
        first = replace(self, decode_schedule="")
        return int(tokens), first, replace(first, bits=int(bits))

    def sequential(self) -> "Variant":
        """The same solved behind layers already quantized, where it is fitted to their inputs."""
        if not method_of(self.method).calibrated or self.backend != "native":
            return self
        return replace(self, method_args=tuple(sorted({*self.method_args, SEQUENTIAL})))

    @property
    def id(self) -> str:
        fields = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(fields.encode()).hexdigest()[:12]

    @property
    def acts_at_run_time(self) -> bool:
        return (self.act_bits, self.kv_bits, self.decode_schedule) != (16, 16, "")

    @property
    def precision(self) -> float:
        """Who wins a tie: by bits, then act_bits, then kv_bits, as one number."""
        return float(self.bits * 10_000 + self.act_bits * 100 + self.kv_bits)

    @property
    def label(self) -> str:
        """`{method}-{bits}b-g{N|row}[-asym][-act][-a8][-kv2]-s{seed}[-r{n}]`; `none` = dense."""
        if self.method == "none":
            return "none"
        args = dict(self.method_args)
        if self.method == "path":
            return args["label"]
        group = "row" if self.group_size == -1 else str(self.group_size)
        method = method_of(self.method)
        parts = [self.method]
        if not method.dense:
            parts += [args["type"]] if method.types else [f"{self.bits}b", f"g{group}"]
        if not self.sym:
            parts.append("asym")
        if self.actorder != "none":
            parts.append("act")
        if self.act_bits != 16:
            parts.append(f"a{self.act_bits}")
        if self.kv_bits != 16:
            parts.append(f"kv{self.kv_bits}")
        if self.decode_schedule:
            parts.append(f"then{self.phases()[2].bits}b")
        parts.append(f"s{self.seed}")
        if self.rounding_seed is not None:
            parts.append(f"r{self.rounding_seed}")
        return "-".join(parts)


def from_fields(recorded: Mapping[str, Any]) -> Variant:
    """The variant whose `asdict` went through JSON."""
    pairs = tuple((str(key), str(value)) for key, value in recorded["method_args"])
    return Variant(**{**recorded, "method_args": pairs})


def expand_pool(
    dense: Variant, rows: Iterable[Mapping[str, Any]], defaults: Mapping[str, Any], calibration: str
) -> list[Variant]:
    """The variants that config rows span, in order; each row's list values are multiplied out.

    `dense` carries model and revision, `defaults` what a row may leave out. Methods that calibrate
    get the identity `calibration`; `type` gives a method that has types its bits. An unknown field,
    a value of another type and a variant named twice are a ValueError.
    """
    known = [field.name for field in fields(Variant) if field.name not in ("model", "revision")]
    variants: list[Variant] = []
    for row in rows:
        for name in row:
            if name not in known and not (name == "type" and method_of(row["method"]).types):
                raise ValueError(f"pool.variants has no field {name!r}; known: {', '.join(known)}")
        axes = [value if isinstance(value, list | tuple) else [value] for value in row.values()]
        for values in itertools.product(*axes):
            chosen = {**defaults, **dict(zip(row, values, strict=True))}
            if "type" in chosen:
                types, kind = method_of(chosen["method"]).types, str(chosen.pop("type"))
                chosen |= {"method_args": (("type", kind),), "bits": types.get(kind, 0)}
            _check_types(chosen)
            method = method_of(chosen.get("method", "none"))
            if method.calibrated:
                chosen["calibration"] = calibration
            if not method.dense and not method.grouped and "group_size" not in row:
                chosen["group_size"] = -1
            if chosen.get("kv_bits", 16) != 16 and "kv" not in method.needs:  # KIVI's scheme
                chosen.setdefault("kv_window", KIVI_WINDOW)
            variants.append(replace(dense, **chosen))
    repeated = [variant.label for variant, n in Counter(variants).items() if n > 1]
    if repeated:
        raise ValueError(f"the pool names {', '.join(repeated)} twice")
    return variants


def _check_types(chosen: Mapping[str, Any]) -> None:
    """ValueError: a value of a row has not the type of its field; every int is a float too."""
    kinds = {field.name: field.type for field in fields(Variant)}
    for name, value in chosen.items():
        kind: Any = int | float if kinds[name] is float else kinds[name]
        if name != "method_args" and (
            not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        ):
            raise ValueError(f"pool.variants: {name} cannot be {value!r}")


def unique_labels(variants: Iterable[Variant]) -> dict[str, Variant]:
    """Label -> variant; where labels clash, `-{id[:4]}` is appended."""
    variants = list(variants)
    labels = [variant.label for variant in variants]
    return {
        label if labels.count(label) == 1 else f"{label}-{variant.id[:4]}": variant
        for label, variant in zip(labels, variants, strict=True)
    }


def short_labels(pool: Mapping[str, Variant]) -> dict[str, str]:
    """Label -> a name for narrow tables: method and bits, the seed where these do not suffice, the
    label itself where that does not either.
    """
    bits = {
        label: f"{v.method}-{dict(v.method_args).get('type', f'{v.bits}b')}"
        for label, v in pool.items()
        if v.method != "path"
    }
    seeds = {label: f"{name}-s{pool[label].seed}" for label, name in bits.items()}
    short = {}
    for label in pool:
        for names in (bits, seeds):
            if label in names and list(names.values()).count(names[label]) == 1:
                short[label] = names[label]
                break
        else:
            short[label] = label
    return short
