"""What each operation of a launch plan does to this process: one file per kernel facility."""
