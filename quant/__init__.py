"""Float networks in, integer networks out: import, data, training, calibration, quantisation."""
