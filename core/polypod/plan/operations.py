"""A launch plan: an ordered list of operations, as data."""

from __future__ import annotations


class Plan:
    """Placeholder until the operations land (same session)."""
