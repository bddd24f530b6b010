"""Benchmarks of joins, ingest and online reads against other systems; run with ``python -m benchmarks``.

Every pair of task and system runs in a process of its own on the same generated data (`data`), and its
answer is compared to the last bit with one worked out with numpy alone (`check`) before its times count. What each
system prepares outside the timing stands in the `note` of its `System` (`peers`). `report` makes the README's
table of the JSON results.
"""
