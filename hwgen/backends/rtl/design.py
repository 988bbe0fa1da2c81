"""A generated design: the Verilog text and what a test bench must know of it."""

from __future__ import annotations

from dataclasses import dataclass

from hwgen.lower.stream import AxiPort, StreamLayout

__all__ = ["Design", "Probe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A stream inside the design that carries a tensor of the network.

    Parameters
    ----------
    instance : str
        Instance of the stage in the top module; its output ports are ``<instance>.o__payload``,
        ``o__valid`` and ``o__ready``.
    tensor : str
        Name of the network's tensor.
    layout : StreamLayout
    """

    instance: str
    tensor: str
    layout: StreamLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """One Verilog file with an AXI4-Stream slave ``s_axis`` and master ``m_axis``.

    Ports of the top module: ``aclk``, ``aresetn`` (synchronous, active low), ``s_axis_tdata``,
    ``s_axis_tvalid``, ``s_axis_tready``, ``s_axis_tlast``, ``m_axis_*`` likewise, ``frame_error``.

    Parameters
    ----------
    top : str
        Name of the top module.
    verilog : str
        The file's text, Verilog-2001.
    input, output : AxiPort
        Layout of the streams at ``s_axis`` and ``m_axis``.
    probes : tuple of Probe
        In the order of the network.
    """

    top: str
    verilog: str
    input: AxiPort
    output: AxiPort
    probes: tuple[Probe, ...]
