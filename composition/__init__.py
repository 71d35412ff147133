"""Composition: plans that combine several adapters in one picture, and the strategies that carry them out."""
