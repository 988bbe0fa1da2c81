"""The cells of the benchmark of the quantisation methods: one module for each method.

A module has ``cells(quick) -> list[Cell]``, in the order in which they run, and
``report(results, out) -> str``, a section of Markdown from the results that are there. Its
``VERSION``, 1 if there is none, is raised when results of the method's code change: cells that were
measured before then count as not done.
"""

METHODS = ("linear", "adaptive", "layerwise", "evolve", "cluster", "accumulator")
"""The methods in the order of the report."""

SECTIONS = (*METHODS, "hardware")
"""What the report has: the methods, then what is built of the networks that they made."""
