"""Tests: one file for each module; `e2e/` has the real server and the real model."""
