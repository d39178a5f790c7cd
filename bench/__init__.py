"""Measurements of single operations; results with hardware and versions lie in bench/results."""
