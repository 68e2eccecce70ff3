"""Tests of single modules and classes, without a running gateway."""
