"""Settings of the hardware tests."""

from __future__ import annotations

from amaranth.hdl import Elaboratable

# Tests create components only to look at them, or to see their arguments refused. Amaranth's own
# switch: a warning filter does not reach objects that are freed after their test.
Elaboratable._MustUse__silence = True
