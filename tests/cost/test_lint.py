"""Verilator's lint: what passes, what does not, and what is waived."""

from __future__ import annotations

import pytest

from hwgen.cost.lint import lint
from hwgen.errors import Mismatch
from tests.cost.designs import mac_text
from tests.support import require_tool


def test_lint() -> None:
    require_tool("verilator", "perl")
    lint(mac_text(), "mac")
    truncated = mac_text().replace("assign rst = ~ aresetn;", "assign rst = x + 8'h01;")
    with pytest.raises(Mismatch, match=r"objects to mac\.v:\n  WIDTHTRUNC: mac\.v:\d+"):
        lint(truncated, "mac")
    with pytest.raises(Mismatch, match=r"WIDTHEXPAND: .*\n  and 20 more"):
        lint(mac_text(), "mac", waivers={})


def test_systemverilog_is_refused() -> None:
    require_tool("verilator", "perl")
    with pytest.raises(Mismatch, match="error"):
        lint(mac_text().replace("always @(posedge aclk)", "always_ff @(posedge aclk)"), "mac")
