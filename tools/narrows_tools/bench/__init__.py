"""Measuring servers under load: `narrows bench`."""
