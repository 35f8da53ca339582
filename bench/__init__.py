"""``make bench``: what a pod, an exec, a list, a restart and a log cost on this host. Never a test."""
