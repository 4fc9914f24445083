"""Aggregation: unlike updates into one global state, one module a rule."""
