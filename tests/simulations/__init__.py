"""Simulations of what intervals and p-values promise; run by hand, small versions of them are tests."""
