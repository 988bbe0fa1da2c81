"""report.json as a page to read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hwgen.ir.network import Network
from hwgen.ir.ops import MacOp
from hwgen.lower.dataflow import Dataflow
from hwgen.lower.stages import Mac

__all__ = ["describe_layers", "markdown", "summary_rows"]


def describe_layers(network: Network, dataflow: Dataflow) -> list[dict[str, Any]]:
    """One entry a layer; what a layer has not is absent."""
    macs = {stage.layer: stage for stage in dataflow.stages if isinstance(stage, Mac)}
    layers = []
    for op in network.ops:
        stages = [stage for stage in dataflow.stages if stage.layer == op.name]
        entry: dict[str, Any] = {"name": op.name, "kind": type(op).__name__}
        if isinstance(op, MacOp):
            entry["weight_bits"] = op.weights.width
            if op.bias is not None:
                entry["bias_bits"] = op.bias.width
        entry["activation_bits"] = op.output.width
        if hasattr(op, "accumulator_width"):
            entry["accumulator_bits"] = op.accumulator_width
        if isinstance(op, MacOp):
            entry["macs"] = op.macs
        if stages:
            entry["cycles"] = max(stage.cycles for stage in stages)
        if op.name in macs:
            mac = macs[op.name]
            entry["stored_weight_bits"] = mac.stored_width
            if mac.codebook is not None:
                entry["codebook_entries"] = len(mac.codebook)
            entry["weight_memory_bits"] = mac.memory_bits
            entry["lanes"] = [mac.i.lanes, mac.o.lanes]
            entry["multipliers"] = mac.multipliers
        elif stages:
            entry["lanes"] = [stages[-1].i.lanes, stages[-1].o.lanes]
        layers.append(entry)
    return layers


def _get(report: dict[str, Any], path: str) -> Any:
    value: Any = report
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return value


_ROWS: tuple[tuple[str, str, str], ...] = (
    ("accuracy, float (test set)", "accuracy.float", "{:.2%}"),
    ("accuracy, integer (test set)", "accuracy.integer", "{:.2%}"),
    ("multipliers", "multipliers", "{:,}"),
    ("cycles a frame, predicted", "cycles.predicted", "{:,}"),
    ("cycles a frame, measured", "cycles.measured", "{:,}"),
    ("latency in cycles, predicted", "latency.predicted", "{:,}"),
    ("latency in cycles, measured", "latency.measured", "{:,}"),
    ("images in Icarus", "cosim.icarus.images", "{:,}"),
    ("mismatches in Icarus", "cosim.icarus.mismatches", "{:,}"),
    ("images in Verilator", "cosim.verilator.images", "{:,}"),
    ("mismatches in Verilator", "cosim.verilator.mismatches", "{:,}"),
    ("LUT", "synth.lut", "{:,}"),
    ("FF", "synth.ff", "{:,}"),
    ("DSP", "synth.dsp", "{:,}"),
    ("BRAM, blocks of the family", "synth.bram_blocks", "{:,}"),
    ("BRAM, 18 kbit units", "synth.bram", "{:,}"),
    ("BRAM, kbit", "synth.bram_kbit", "{:,}"),
    ("Fmax after place and route, MHz", "pnr.fmax_mhz", "{:.1f}"),
    ("frames a second at that clock", "fps", "{:,.0f}"),
)


def summary_rows(report: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """What was measured, as label and text."""
    for label, path, form in _ROWS:
        value = _get(report, path)
        if value is not None:
            yield label, form.format(value)


def _plain(value: Any) -> str:
    """A setting's value; a whole number without a point."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [f"# {report['name']} on {report['target']}", ""]
    lines += ["| figure | value |", "| --- | ---: |"]
    lines += [f"| {label} | {text} |" for label, text in summary_rows(report)]
    settings = {"clock in MHz": f"{report['clock_mhz']:g}", **report.get("settings", {})}
    settings |= {"data": report["data"], "test images": report["test_images"]}
    lines += ["", "## Settings", "", "| setting | value |", "| --- | --- |"]
    lines += [f"| {key.replace('_', ' ')} | {_plain(value)} |" for key, value in settings.items()]
    lines += ["", "Bits are weights/biases/activations.", "", "## Layers", ""]
    keys = [
        ("name", "layer"),
        ("kind", "kind"),
        ("weight_bits", "weight bits"),
        ("stored_weight_bits", "stored bits of a weight"),
        ("bias_bits", "bias bits"),
        ("activation_bits", "activation bits"),
        ("accumulator_bits", "accumulator bits"),
        ("macs", "MACs"),
        ("cycles", "cycles"),
        ("lanes", "lanes in x out"),
    ]
    lines.append("| " + " | ".join(title for _, title in keys) + " |")
    lines.append("| --- | --- |" + " ---: |" * (len(keys) - 2))
    for layer in report["layers"]:
        cells = []
        for key, _ in keys:
            value = layer.get(key, "")
            if key == "lanes" and value:
                value = f"{value[0]} x {value[1]}"
            cells.append(f"{value:,}" if isinstance(value, int) else str(value))
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## Checks", ""]
    lines += [f"- {text}" for text in report.get("checks", [])]
    notes = [*report.get("import_notes", []), *report.get("notes", [])]
    if notes:
        lines += ["", "## Notes", ""]
        lines += [f"- {text}" for text in notes]
    return "\n".join(lines) + "\n"
