"""What transformers knows of a checkpoint: configuration, class, names of tensors."""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptsearch import store
from ptsearch.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

CURE = "(correct it, or download or build the checkpoint again)"
# What a checkpoint of the same model has in common with it, where both say it.
SHAPE = (
    "architectures", "model_type", "num_hidden_layers", "hidden_size", "intermediate_size",
    "num_attention_heads", "num_key_value_heads", "vocab_size",
)  # fmt: skip
MOST = 4096  # layers or experts of a configuration that is believed
STATES = {"mamba", "linear_attention", "conv", "recurrent"}  # kinds of layers without keys, values


def need_checkpoint(folder: Path, what: str) -> None:
    """ValueError: the folder, which `what` gives, holds no checkpoint."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{what}: no checkpoint there ({folder / 'config.json'} is missing)")


def check_same_model(base: Path, folder: Path, what: str) -> None:
    """ValueError: `folder` holds a checkpoint of another model than `base`; what differs first."""
    ours, theirs = (store.read_json(where / "config.json") for where in (base, folder))
    ours, theirs = (each | (each.get("text_config") or {}) for each in (ours, theirs))
    for key in SHAPE:
        expected, got = ours.get(key), theirs.get(key)
        if expected is not None and got is not None and expected != got:
            raise ValueError(
                f"{what}: a checkpoint of another model: {key} is {got}, the base model has "
                f"{expected}"
            )


def check_source(settings: ModelConfig) -> None:
    """ValueError: where the base model comes from is not said, or the folder does not hold one."""
    if settings.source == "path":
        check_base(Path(settings.path), f"model.path={settings.path!r}")
    if settings.source == "hub" and not (settings.repo and settings.revision):
        raise ValueError("model=hub needs model.repo=OWNER/NAME and model.revision=COMMIT")


def check_base(folder: Path, what: str) -> None:
    """ValueError unless the folder holds an uncompressed safetensors checkpoint."""
    need_checkpoint(folder, what)
    try:
        store.check_weights(folder)
    except ValueError as error:
        raise ValueError(f"{what}: {error}\n{CURE}") from None
    weights = "model.safetensors"
    if not any((folder / f"{weights}{end}").is_file() for end in ("", ".index.json")):
        raise ValueError(f"{what}: {weights} is missing; only safetensors weights are read")
    config = store.read_json(folder / "config.json")
    if config.get("quantization_config"):
        raise ValueError(
            f"{what} is quantized already; the base model must be the uncompressed one "
            "(a quantized checkpoint joins a pool under pool.paths)"
        )


def read_config(folder: Path, trust_remote_code: bool = False) -> "PretrainedConfig":
    """A checkpoint's configuration.

    ValueError: an architecture not known here, in one line; or more layers than any model has.
    """
    import transformers

    if (folder / "config.json").is_file():
        _check_sizes(folder / "config.json", store.read_json(folder / "config.json"))
    try:
        return transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"transformers {transformers.__version__}: {reason}") from None


def _check_sizes(path: Path, fields: Mapping[str, object]) -> None:
    for key, value in fields.items():
        if isinstance(value, Mapping):
            _check_sizes(path, value)
        elif isinstance(value, int) and value > MOST and ("layer" in key or "expert" in key):
            raise ValueError(f"{path}: {key} is {value}, at most {MOST} are believed\n{CURE}")


@cache
def attention_sizes(folder: Path, trust_remote_code: bool = False) -> dict[str, int]:
    """What the KV cache's size depends on: layers with attention, key/value heads, their width."""
    config = read_config(folder, trust_remote_code).get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 0
    kinds = getattr(config, "layer_types", None) or ["attention"] * config.num_hidden_layers
    attending = sum(heads > 0 and kind not in STATES for kind in kinds)
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return {"layers": attending, "kv_heads": kv_heads, "width": width}


def auto_class(config: "PretrainedConfig") -> Any:
    """The class of transformers whose `from_pretrained` reads the checkpoint with all its parts.

    ValueError, in one line: it is not a model that continues a text.
    """
    import transformers

    if config.is_encoder_decoder:
        raise ValueError(f"{config.model_type} is an encoder-decoder; a causal LM is required")
    choices = [
        (transformers.AutoModelForCausalLM, transformers.MODEL_FOR_CAUSAL_LM_MAPPING),
        (transformers.AutoModelForMultimodalLM, transformers.MODEL_FOR_MULTIMODAL_LM_MAPPING),
    ]
    if config.get_text_config() is not config:  # the text part alone would lose the others
        choices.reverse()
    for auto, known in choices:
        if type(config) in known or auto.__name__ in (getattr(config, "auto_map", None) or {}):
            return auto
    raise ValueError(f"transformers has no causal LM of model_type={config.model_type!r}")


class Names:
    """Tensors' names on disk and in the model, which differ where transformers renames on loading.

    Known are the base model's; `X.SUFFIX` of a quantized linear goes where `X.weight` went.
    """

    def __init__(self, model: "PreTrainedModel | None" = None, stored: Iterable[str] = ()) -> None:
        pairs = _renamed(model, stored) if model is not None else []
        self._in_model = {**{_stem(a): _stem(b) for a, b in pairs}, **dict(pairs)}
        self._on_disk = {new: old for old, new in self._in_model.items()}

    def in_model(self, name: str) -> str:
        """Of a tensor or a linear that is called `name` on disk."""
        return _look_up(name, self._in_model)

    def on_disk(self, name: str) -> str:
        return _look_up(name, self._on_disk)


def _look_up(name: str, known: dict[str, str]) -> str:
    if name in known:
        return known[name]
    stem, dot, suffix = name.rpartition(".")
    return known.get(stem, stem) + dot + suffix


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _renamed(model: "PreTrainedModel", stored: Iterable[str]) -> list[tuple[str, str]]:
    """(on disk, in the model) of the tensors whose names differ."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    known = get_model_conversion_mapping(model)
    renamings = [part for part in known if isinstance(part, WeightRenaming)]
    prefix, state = model.base_model_prefix, dict.fromkeys(model.state_dict(), True)
    pairs = [(name, rename_source_key(name, renamings, [], prefix, state)[0]) for name in stored]
    return [(old, new) for old, new in pairs if old != new]
