"""Measures of what a generator has learned: fidelity, consistency, geometry, symmetry."""
