"""Integer network to dataflow: stages, folding, buffer depths and the exact schedule."""
