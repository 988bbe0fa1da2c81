"""Number formats, requantisation and its float form against definitions in whole numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwgen.errors import BadNetwork
from hwgen.ir import Fixed, Geometry, Requant, Rounding, TensorType, signed_width, width_of
from hwgen.ir.affine import FLOAT32, FLOAT64, Affine, float_for
from tests.ir import loops

ENDS = st.integers(-(2**40), 2**40)


@given(ENDS, ENDS)
def test_widths_are_the_smallest_that_hold(a: int, b: int) -> None:
    low, high = sorted((a, b))
    width = signed_width(low, high)
    assert -(2 ** (width - 1)) <= low <= high < 2 ** (width - 1)
    assert width == 1 or low < -(2 ** (width - 2)) or high >= 2 ** (width - 2)
    width, signed = width_of(low, high)
    form = Fixed(width=width, frac=0, signed=signed)
    assert signed == (low < 0)
    assert form.low <= low <= high <= form.high
    if width > 1:
        smaller = Fixed(width=width - 1, frac=0, signed=signed)
        assert low < smaller.low or high > smaller.high


def test_fixed_point_codes_and_values() -> None:
    form = Fixed(width=3, frac=2, signed=True)
    assert [q * form.scale for q in form.codes] == [q / 4 for q in range(-4, 4)]
    assert list(Fixed(width=1, frac=0, signed=True).codes) == [-1, 0]


@pytest.mark.parametrize(
    ("given_type", "message"),
    [
        ({"shape": (2, 3), "width": 8, "signed": True}, "shape must be"),
        ({"shape": (0,), "width": 8, "signed": True}, "shape must be"),
        ({"shape": (1,), "width": 0, "signed": True}, "at least 1 bit"),
        ({"shape": (1,), "width": 8, "signed": False, "low": -1}, "must lie within 0..255"),
        ({"shape": (1,), "width": 8, "signed": True, "low": 3, "high": 2}, "must lie within"),
        ({"shape": (1,), "width": 8, "signed": True, "scale": float("nan")}, "finite"),
    ],
)
def test_types_refuse(given_type: dict[str, object], message: str) -> None:
    with pytest.raises(BadNetwork, match=message):
        TensorType(**given_type)  # type: ignore[arg-type]


@st.composite
def requants(draw: st.DrawFn, bits: int = 24) -> Requant:
    """Requantisers with up to three channels, parameters of about ``bits`` bits in all."""
    channels = draw(st.integers(1, 3))

    def each(values: st.SearchStrategy[int]) -> tuple[int, ...]:
        count = draw(st.sampled_from([1, channels]))
        return tuple(draw(st.lists(values, min_size=count, max_size=count)))

    low = each(st.integers(-300, 100))
    top = max(low)
    return Requant(
        mult=each(st.one_of(st.just(1), st.integers(-(2 ** (bits // 3)), 2 ** (bits // 3)))),
        add=each(st.one_of(st.just(0), st.integers(-(2**bits), 2**bits))),
        shift=each(st.integers(0, bits)),
        low=low,
        high=each(st.integers(top, 400)),
        zero=draw(st.integers(-130, 130)),
        rounding=draw(st.sampled_from(Rounding)),
        relu=draw(st.booleans()),
    )


def codes_of(rule: Requant, accs: list[int]) -> list[list[int]]:
    """Codes ``[accumulator][channel]`` by the definition."""
    return [[loops.requant(rule, acc, c) for c in range(rule.channels)] for acc in accs]


def grid(rule: Requant, accs: list[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Accumulators ``(len(accs), channels)``, the same in each channel."""
    return np.repeat(np.array(accs, dtype=np.int64)[:, None], rule.channels, axis=1)


@given(requants(), st.lists(ENDS, min_size=1, max_size=20))
def test_requant_is_its_definition(rule: Requant, accs: list[int]) -> None:
    assert rule.apply(grid(rule, accs)).tolist() == codes_of(rule, accs)
    last = rule.apply(np.ascontiguousarray(grid(rule, accs).T), axis=0)
    assert last.T.tolist() == codes_of(rule, accs)


@given(st.integers(-40, 40), st.integers(0, 4), st.sampled_from(Rounding))
def test_ties_round_by_the_rule(acc: int, shift: int, rounding: Rounding) -> None:
    rule = Requant(shift=(shift,), low=(-99,), high=(99,), rounding=rounding)
    assert rule.apply(np.array([[acc]])).item() == loops.requant(rule, acc, 0)


@given(requants(), ENDS, ENDS)
def test_requant_interval_is_exact(rule: Requant, a: int, b: int) -> None:
    low, high = min(a, b), min(max(a, b), min(a, b) + 40)
    for channel in range(rule.channels):
        codes = [loops.requant(rule, acc, channel) for acc in range(low, high + 1)]
        assert rule.interval(low, high, channel) == (min(codes), max(codes))


@given(requants(), st.lists(ENDS, min_size=1, max_size=20))
def test_common_shift_is_the_same_function(rule: Requant, accs: list[int]) -> None:
    common = rule.common_shift()
    assert len(common.shift) == 1
    assert codes_of(common, accs) == codes_of(rule, accs)


@given(requants(), st.lists(ENDS, min_size=2, max_size=20))
def test_monotone_requantisers_keep_order(rule: Requant, accs: list[int]) -> None:
    if rule.monotone:
        for codes in zip(*codes_of(rule, sorted(accs)), strict=True):
            assert list(codes) == sorted(codes)


@given(
    requants(bits=14),
    st.lists(st.integers(-(2**18), 2**18), min_size=2, max_size=20),
    st.lists(st.integers(-(2**12), 2**12), min_size=3, max_size=3),
    st.booleans(),
)
def test_float_form_is_exact_where_it_claims(
    rule: Requant, dots: list[int], biases: list[int], in_place: bool
) -> None:
    bias = np.array(biases[: rule.channels])
    low, high = min(dots) + bias, max(dots) + bias
    affine = Affine.of(rule, low, high, bias)
    dtype = float_for(affine.bound)
    assert dtype is not None
    expected = rule.apply(grid(rule, dots) + bias).T - rule.zero
    for kind in {dtype, FLOAT64}:
        for scaled in {False, not rule.relu}:
            source = grid(rule, dots).T.astype(np.float64)
            if scaled:
                source *= np.array(affine.gain)[:, None]
            source = source.astype(kind)
            out = np.empty_like(source)
            work = source if in_place else out
            for step in affine.steps(source, out, work, scaled=scaled):
                step()
            assert np.array_equal(out, expected)


def test_float_limits() -> None:
    assert float_for((1 << 24) - 1) == FLOAT32
    assert float_for(1 << 24) == float_for((1 << 53) - 1) == FLOAT64
    assert float_for(1 << 53) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shift": (-1,)}, "shift must be at least 0"),
        ({"low": (5,)}, "channel 0 has 5 and 3"),
        ({"low": (0, 4)}, "channel 1 has 4 and 3"),
        ({"mult": (1, 2), "add": (1, 2, 3)}, "1 entry or one a channel"),
        ({"mult": ()}, "1 entry or one a channel"),
    ],
)
def test_requant_refuses(change: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(BadNetwork, match=message):
        Requant(**{"low": (0,), "high": (3,), **change})  # type: ignore[arg-type]


SIZES = st.integers(1, 9)


@given(SIZES, st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.booleans())
def test_ceil_mode_windows_are_those_of_torch(
    size: int, kernel: int, stride: int, pad: int, ceil_mode: bool
) -> None:
    torch = pytest.importorskip("torch")
    if 2 * pad > kernel or size + 2 * pad < kernel:
        return
    g = Geometry(
        height=size,
        width=size,
        kernel=(kernel,) * 2,
        stride=(stride,) * 2,
        padding=(pad,) * 4,
        ceil_mode=ceil_mode,
    )
    made = torch.nn.functional.max_pool2d(
        torch.zeros(1, 1, size, size), kernel, stride, pad, ceil_mode=ceil_mode
    )
    assert (g.out_height, g.out_width) == tuple(made.shape[2:])
