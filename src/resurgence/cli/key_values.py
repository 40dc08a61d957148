"""The KEY=VALUE pairs of options such as --set."""

from __future__ import annotations

import json
from typing import Any

from resurgence.config.fields import ConfigError, yaml_value


def settings(pairs: list[str] | None, option: str) -> dict[str, Any]:
    """Parse key=value pairs; values are JSON or YAML, so 1e-4, [1, 2], null and plain words all work.

    Raises:
        ConfigError: a pair without =, a key given twice, or a value that is not valid YAML or octal in it.
    """
    values: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not equals or not key or key in values:
            raise ConfigError(option, pair, "write key=value, each key once")
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = yaml_value(text, option, pair)
    return values
