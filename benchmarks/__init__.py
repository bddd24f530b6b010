"""Benchmarks of joins, ingest and online reads against other systems; run with ``python -m benchmarks``.

Every system of a comparison runs in a process of its own on the same generated data (`data`, `history`, and `large`
for what does not fit into memory). Its answer is compared to the last bit with one worked out with numpy alone
(`check`) before its times count. Then the systems of the comparison run in turns (`lab`, `process`, `child`), so that
what else the machine does hits them alike; the median of their runs counts, the least and most are kept. Memory is
looked at in a run of its own.

What is timed, and what is not, stands in the modules of the tasks: `join`, `join_variants`, `join_memory`,
`join_first`; `ingest`; `online_one`, `online_many`, `online_load`, `online_write`, `online_start`; `cold`; `scale`.
What one system prepares outside the timing stands in the `note` of its `System` (`peers`).

Results are kept as JSON (`kept`). `report`, `targets` and `plot` make the README's part of them: no figure in it
is written by hand.
"""
