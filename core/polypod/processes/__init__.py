"""The daemon's end of keeper, supervisor and logger."""
