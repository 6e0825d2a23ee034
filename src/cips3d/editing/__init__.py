"""Editing: blended models, mixed styles, inversion, and subjects as files."""
