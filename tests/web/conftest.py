"""Fixtures of the web tests."""

from tests.support.served_app import one_served_app, served

__all__ = ["one_served_app", "served"]
