"""History: loading rows into segments, merging them, and joining them point-in-time correctly."""
