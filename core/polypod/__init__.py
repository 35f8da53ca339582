"""polypod: one CRI endpoint, many isolation backends."""

__version__ = "0.1.0"
