"""Tests of what callers see when a daemon dies under its mount and another one takes over."""
