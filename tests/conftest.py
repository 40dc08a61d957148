"""Of all tests: the budgets of the tiers."""

from __future__ import annotations

import pytest

from budget import Budget


def pytest_configure(config: pytest.Config) -> None:
    """Add up what the tests cost."""
    config.pluginmanager.register(Budget(config), "budget")
