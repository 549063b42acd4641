"""Tests of `annotation`, one file for each module."""
