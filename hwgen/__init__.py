"""Quantised neural networks to FPGA hardware."""
