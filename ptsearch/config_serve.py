"""What `conf/serve/` sets: apart from `config`, which would be too long with it."""

from dataclasses import dataclass, field

from ptsearch.checks import at_least, one_of

CONSTRAINTS = ("structured_outputs", "response_format", "none")


@dataclass
class ServeConfig:
    """An exported ensemble behind an OpenAI-compatible endpoint; mode is local or gateway."""

    mode: str = "local"
    dir: str = ""  # what +export=ensemble wrote
    name: str = ""  # of the model, for clients; "" = the folder's name
    host: str = "127.0.0.1"
    port: int = 8000  # 0 = any free one
    api_key_env: str = ""  # name of the environment variable that holds the key; "" = no key
    max_body: int = 1_000_000  # bytes of a request
    max_prompt: int = 100_000  # characters
    max_concurrent: int = 256  # requests under way; more get a 429
    log_prompts: bool = False
    differ: int = 0  # votes of verify.jsonl that may come out otherwise
    alarm_disagreement: float = 0.5  # share of votes with different answers
    lazy: bool = False  # stop asking members when the vote is decided
    keep_tokens: int = 8192  # local: tokens of prompts' common beginnings kept for each member
    engines: list[str] = field(default_factory=list)  # gateway: URLs up to and with /v1, in the
    # order of vote.order in ensemble.yaml
    engine_key_env: str = ""  # gateway: name of the variable that holds the engines' key
    constrain: str = "structured_outputs"  # gateway: how engines are bound to the labels
    quorum: int = 0  # gateway: members that must reply; 0 = more than half
    timeout: float = 10.0  # gateway: seconds for a member's reply, retries included
    retries: int = 1  # gateway: of a request that got no reply, a 429 or a 5xx
    rest: float = 5.0  # gateway: seconds that a member that failed is left alone, at least; 0 = not
    wait: float = 300.0  # gateway: seconds for the engines to come up

    def __post_init__(self) -> None:
        one_of("serve.mode", self.mode, ("local", "gateway"))
        one_of("serve.constrain", self.constrain, CONSTRAINTS)
        for url in self.engines:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"serve.engines must begin with http, got {url!r}")
        for key in ("max_body", "max_prompt", "max_concurrent"):
            at_least(f"serve.{key}", getattr(self, key), 1)
        for key in (
            "differ",
            "alarm_disagreement",
            "keep_tokens",
            "quorum",
            "retries",
            "rest",
            "wait",
        ):
            at_least(f"serve.{key}", getattr(self, key), 0)
        at_least("serve.timeout", self.timeout, 0.001)
