"""Tests: one file for each module, the guarantees, and real clients."""
