"""Checkpoints -> bundles. The only package that imports torch, transformers and optimum."""
