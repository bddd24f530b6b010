"""Latest values: packed rows under entity keys, and the readers that look them up."""
