"""Checks of the config's values; each message names the key."""

import os


def one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}, got {value!r}")


def at_least(key: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{key} must be at least {least}, got {value}")


def secret(key: str, variable: str) -> str:
    """What the environment variable holds that the config names under `key`; "" = none is named.

    It is read where it is used and stands in no file or message.
    """
    value = os.environ.get(variable, "").strip()
    if variable and not value:
        raise ValueError(f"{key}: the environment variable {variable} is not set")
    return value
