"""Measuring a model: every figure beside its reference value, its threshold and its protocol."""
