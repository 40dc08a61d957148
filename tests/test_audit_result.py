"""The result of an audit as a file."""

import json

import pytest

from audits import AUDIT
from resurgence.analysis.audit.result import read_audit, write_audit
from resurgence.config.fields import ConfigError


def test_file_gives_the_same_audit(tmp_path):
    write_audit(AUDIT, tmp_path / "verdict.json")
    assert read_audit(tmp_path / "verdict.json") == AUDIT


def test_unknown_key_is_named(tmp_path):
    write_audit(AUDIT, tmp_path / "verdict.json")
    values = json.loads((tmp_path / "verdict.json").read_text())
    values["probes"][1]["verdikt"] = "PASS"
    (tmp_path / "verdict.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"probes\[1\]\.verdikt.*unknown key"):
        read_audit(tmp_path / "verdict.json")
