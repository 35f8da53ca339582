"""``make demo``: the main job from nothing to clean, through the CRI socket, with a time for each step."""
