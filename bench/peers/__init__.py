"""``make bench-peers``: the same client, the same pods, on polypod and on Debian's containerd, in turns."""
