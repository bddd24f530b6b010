"""Seeded faults: each is put into a copy of the library, and the tests must fail. ``python tests/mutations.py``

A fault that survives means that a rule is not tested: each names the file of tests that must fail. With ``--tests``
other files are run instead; ``--tests test_stateful.py`` shows what the state machine finds by itself.
`test_mutations.py` checks that every fault still applies.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Fault:
    """`old`, which stands just once in `file` of the library, becomes `new`; `tests` must fail."""

    name: str
    tests: str
    file: str
    old: str
    new: str


FAULTS = (
    Fault(
        "event before the row's time only, not at it",
        "test_join.py",
        "offline/kernels/searching.py",
        "np.int64(event <= asked[j])",
        "np.int64(event < asked[j])",
    ),
    Fault(
        "max age excludes its end",
        "test_join.py",
        "offline/kernels/searching.py",
        "(found & (event >= oldest) &",
        "(found & (event > oldest) &",
    ),
    Fault(
        "knowledge time is ignored",
        "test_join.py",
        "offline/kernels/searching.py",
        "    if not knows:\n",
        "    if True:\n",
    ),
    Fault(
        "rows without a created timestamp are always known",
        "test_join.py",
        "offline/kernels/searching.py",
        "    return commit_times[max(min(",
        "    return created + 0 * commit_times[max(min(",
    ),
    Fault(
        "replaced rows live on for joins as of a knowledge time",
        "test_join.py",
        "offline/kernels/searching.py",
        "        return np.int64(NEVER)\n",
        "        return np.int64(ABSENT)\n",
    ),
    Fault(
        "the last of the queries searched in step takes a step less",
        "test_join.py",
        "offline/kernels/searching.py",
        "            longest = max(longest, sizes[j])\n",
        "            longest = max(longest, sizes[0])\n",
    ),
    Fault(
        "a segment is passed over for what an older one has",
        "test_join.py",
        "offline/kernels/searching.py",
        "best_event[i] > event_max)",
        "best_event[i] > event_min)",
    ),
    Fault(
        "of a packed value that ends in a ninth byte, its end is lost",
        "test_cells.py",
        "offline/kernels/words.py",
        "    if first + width > 64:\n",
        "    if first + width > 72:\n",
    ),
    Fault(
        "the values of the second thread go where those of the first do",
        "test_sorting.py",
        "offline/search.py",
        "starts[part], bounds[part][0], order, ordered",
        "starts[part], 0, order, ordered",
    ),
    Fault(
        "a block of unknown rows is stepped over by one too many",
        "test_database.py",
        "offline/kernels/searching.py",
        "                        place -= 64\n",
        "                        place -= 65\n",
    ),
    Fault(
        "of equal event timestamps the earlier created wins",
        "test_join.py",
        "offline/kernels/sorting.py",
        "        return created[i] < created[j]\n",
        "        return created[i] > created[j]\n",
    ),
    Fault(
        "the earlier of equal rows in one batch stays",
        "test_join.py",
        "offline/rows.py",
        "    replaced[:-1] = (codes",
        "    replaced[1:] = (codes",
    ),
    Fault(
        "the created timestamp is dropped",
        "test_join.py",
        "offline/prepare.py",
        "        ages = created.data if created.valid is None else np.where(created.valid, created.data, ABSENT_US)\n",
        "        pass\n",
    ),
    Fault(
        "nulls are joined as zeros",
        "test_cells.py",
        "offline/kernels/words.py",
        "    return address == 0 or",
        "    return address >= 0 or",
    ),
    Fault(
        "a null event timestamp of the entity dataframe matches",
        "test_join.py",
        "offline/joiner.py",
        "            usable = times.valid\n",
        "            usable = None\n",
    ),
    Fault(
        "max age is ignored online",
        "test_online.py",
        "online/query.py",
        "        if plan.max_age_us is not None and now_us - event > plan.max_age_us:\n",
        "        if False:\n",
    ),
    Fault(
        "max age excludes its end online",
        "test_online.py",
        "online/reader.py",
        "rows.found & (rows.event < now_us - plan.max_age_us)",
        "rows.found & (rows.event <= now_us - plan.max_age_us)",
    ),
    Fault(
        "late data overwrites newer online",
        "test_online.py",
        "online/kernels/rows.py",
        "outcome[row] = WINS if later else LOSES",
        "outcome[row] = WINS",
    ),
    Fault(
        "max age is ignored in few rows",
        "test_online_paths.py",
        "online/few.py",
        "if plan.max_age_us is None or now_us - event <= plan.max_age_us:",
        "if True:",
    ),
    Fault(
        "compiled reads know no nulls",
        "test_online_paths.py",
        "online/kernels/rows.py",
        ">> (null & 7) & 1 ^ 1",
        ">> (null & 7) & 0 ^ 1",
    ),
    Fault(
        "the walk takes a commit that may be overwritten meanwhile",
        "test_pagewalk.py",
        "storage/filemap.py",
        " or other[-1] >= number",
        "",
    ),
    Fault(
        "the walk follows any number of a page",
        "test_pagewalk.py",
        "online/kernels/walking.py",
        "return number if 2 <= number < page_count else 0",
        "return number",
    ),
    Fault(
        "a negative zero is taken for a decimal",
        "test_packing.py",
        "storage/kernels.py",
        "        scaled = np.rint(values[i] * scale) + 0.0\n",
        "        scaled = np.rint(values[i] * scale)\n",
    ),
    Fault(
        "a value that crosses words is read short",
        "test_packing.py",
        "storage/kernels.py",
        "        if shift + width > 64:\n",
        "        if shift + width > 65:\n",
    ),
    Fault(
        "merging runs forgets the order of arrival",
        "test_sorting.py",
        "offline/kernels/sorting.py",
        "            event[j] < event_tmp[i] or",
        "            event[j] <= event_tmp[i] or",
    ),
    Fault(
        "unchanged rows are stored again",
        "test_ingest_order.py",
        "offline/ingest.py",
        "            kept[at[same]] = False\n",
        "",
    ),
    Fault(
        "the columns of an alias are swapped",
        "test_aliases.py",
        "storage/references.py",
        "tuple(alias.keys.get(entity, entity) for entity in entities))",
        "tuple(alias.keys.get(entity, entity) for entity in entities)[::-1])",
    ),
    Fault(
        "both roles of a table read the columns of the first",
        "test_aliases.py",
        "offline/joiner.py",
        "spaces.setdefault((use.table.space_id, use.columns), [])",
        "spaces.setdefault((use.table.space_id, ()), [])",
    ),
    Fault(
        "a partial row is filled from the row before the one that it replaces",
        "test_partial.py",
        "offline/kernels/searching.py",
        "(chunk_event[middle] == event[i] and made <= created[i])",
        "(chunk_event[middle] == event[i] and made < created[i])",
    ),
    Fault(
        "a partial row is filled from a replaced row",
        "test_partial.py",
        "offline/kernels/searching.py",
        "        while len(dead) > 0 and place >= slice_start and dead[place]:\n            place -= 1\n",
        "",
    ),
    Fault(
        "incremental materialize goes by event timestamps",
        "test_apart.py",
        "offline/materialize.py",
        "else _codes_since(reader, since_commit) for reader in readers]\n",
        "else _codes_since(reader, since_commit) for reader in readers\n"
        "         if reader.info.event_max == max(other.info.event_max for other in readers)]\n",
    ),
    Fault(
        "incremental materialize forgets that a range left rows out",
        "test_apart.py",
        "offline/materialize.py",
        "    if start_us is None and end_us is None:\n        clear_pending(txn, table.id)\n",
        "    clear_pending(txn, table.id)\n",
    ),
    Fault(
        "an overwritten online value is not saved for snapshots",
        "test_snapshots.py",
        "online/index.py",
        "            if save is not None:\n                save(full)\n",
        "",
    ),
    Fault(
        "a snapshot reads the online values of now",
        "test_snapshots.py",
        "storage/snapshots.py",
        "            for layer in self._layers():\n                name = layer + bytes(key[1:])\n",
        "            for layer in self._layers()[1:]:\n                name = layer + bytes(key[1:])\n",
    ),
    Fault(
        "segments that a snapshot holds are removed",
        "test_snapshots.py",
        "storage/manifest.py",
        "    if not is_pinned(txn, table_id, segment_id):\n",
        "    if True:\n",
    ),
    Fault(
        "the hash in the lineage ignores the known_at column",
        "test_snapshots.py",
        "offline/joiner.py",
        "self._seen({**keys, self._event_column: times, **by_column})",
        "self._seen({**keys, self._event_column: times})",
    ),
    Fault(
        "the hash in the lineage ignores nulls",
        "test_snapshots.py",
        "offline/lineage.py",
        "            valid.update(np.ascontiguousarray(present).data)\n",
        "",
    ),
    Fault(
        "verify does not compare online values with history",
        "test_verify.py",
        "verify/serving.py",
        "            comparer.compare(keys, rows, space.lookup(check.txn, keys.tolist()))\n",
        "            comparer.skip(space.lookup(check.txn, keys.tolist()))\n",
    ),
    Fault(
        "verify does not look for keys that online lacks",
        "test_verify.py",
        "verify/serving.py",
        "    if comparer is not None:\n        comparer.finish(space)\n",
        "",
    ),
    Fault(
        "rejected rows are not kept",
        "test_rejected.py",
        "offline/ingest.py",
        "            add_rejected(txn, table_id, rejected)\n",
        "",
    ),
    Fault(
        "the range of stored rows excludes its end",
        "test_retrieval.py",
        "offline/retrieve.py",
        "kept &= event <= self._span.end_us",
        "kept &= event < self._span.end_us",
    ),
    Fault(
        "a null in the row found counts as outside the max age",
        "test_online.py",
        "online/reader.py",
        "    codes[~found] = Status.NOT_FOUND\n",
        "    codes[~found] = Status.NOT_FOUND if outside is None else Status.OUTSIDE_MAX_AGE\n",
    ),
    Fault(
        "forgotten keys keep their online rows",
        "test_forget.py",
        "offline/forget.py",
        "    deleted = np.fromiter(map(txn.delete, space.online_keys(table.id)), np.bool_, len(space.keys))\n",
        "    deleted = np.zeros(len(space.keys), dtype=np.bool_)\n",
    ),
    Fault(
        "forgotten rows stay in their segments",
        "test_forget.py",
        "offline/forget.py",
        "        drop_segment(txn, table.id, ref.id)\n",
        "        pass\n",
    ),
    Fault(
        "keys are forgotten though a snapshot holds their rows",
        "test_forget.py",
        "offline/forget.py",
        "    if holding:\n",
        "    if False:\n",
    ),
    Fault(
        "keys are forgotten that another table needs",
        "test_forget.py",
        "offline/forget.py",
        "            space.needed |= space.held(txn, cache, table)\n",
        "            pass\n",
    ),
    Fault(
        "rows in the tail are not forgotten",
        "test_forget.py",
        "offline/forget.py",
        "        flush_tail(txn, table)\n",
        "        pass\n",
    ),
    Fault(
        "readers of a rewritten file are not told",
        "test_compact.py",
        "storage/rewrite.py",
        "        env.write(mark)\n",
        "        env.write(clear_mark)\n",
    ),
    Fault(
        "a rewritten file has a transaction number of the wrong meta page",
        "test_compact.py",
        "storage/rewrite.py",
        " and (last - written) % 2 == 0:",
        ":",
    ),
    Fault(
        "checksums of entries do not cover their keys",
        "test_hostile.py",
        "storage/crc.py",
        "zlib.crc32(key, zlib.crc32(body))",
        "zlib.crc32(body)",
    ),
    Fault(
        "the marks of a tail leave new rows out",
        "test_tail.py",
        "storage/tail.py",
        "        marks ^= _mark(raw)\n",
        "        marks ^= 0\n",
    ),
    Fault(
        "rows of the tail are not joined",
        "test_tail.py",
        "offline/tail.py",
        "    return segments if tail is None else [*segments, tail]\n",
        "    return segments\n",
    ),
    Fault(
        "the tail of an earlier commit is joined",
        "test_tail.py",
        "offline/tail.py",
        "    if held is not None and held[0] == key:\n",
        "    if held is not None:\n",
    ),
    Fault(
        "a longer ingest is not compared with the tail",
        "test_tail.py",
        "offline/ingest.py",
        "        if not small:\n            self._flush_tail()\n",
        "",
    ),
    Fault(
        "a late row is appended as if it were the newest",
        "test_tail.py",
        "offline/append.py",
        "(row.event_us, row.created_us) <= before:",
        "(row.event_us, row.created_us) < before:",
    ),
    Fault(
        "appending does not notice rows that are not online yet",
        "test_tail.py",
        "offline/append.py",
        " or pending_since(txn, table_id) is not None:",
        ":",
    ),
    Fault(
        "a snapshot shows the tail of now",
        "test_tail.py",
        "storage/snapshots.py",
        "        elif space == NS_TAIL:\n            return None",
        "        elif space == NS_TAIL:\n            return self._inner.get(key)",
    ),
    Fault(
        "keys of online values are told apart by their numbers in a batch",
        "test_ingest_order.py",
        "offline/latest.py",
        "    numbers, _ = number_entries(keys)\n",
        "    numbers = concat_rows([earlier[0], later[0]]).codes\n",
    ),
    Fault(
        "a key that is online alone is not forgotten by one of its entities",
        "test_forget.py",
        "offline/forget.py",
        "chain(space.blocks(txn), _online_keys(txn, space.id))",
        "space.blocks(txn)",
    ),
    Fault(
        "what a write transaction has read is not copied",
        "test_packing.py",
        "storage/segment.py",
        "return values if aligned and not isinstance(self._txn, WriteTxn) else",
        "return values if aligned else",
    ),
    Fault(
        "rows replaced during a merge come back",
        "test_merge_beside.py",
        "offline/merge_beside.py",
        "            if new.dead_version != old.dead_version:\n",
        "            if False:\n",
    ),
    Fault(
        "a merge goes on with what others have removed",
        "test_merge_beside.py",
        "offline/merge_beside.py",
        "        if not is_staged(txn, self._table.id, self._id):\n",
        "        if False:\n",
    ),
    Fault(
        "the merged segment's number is given twice",
        "test_merge_beside.py",
        "offline/merge_beside.py",
        "next_segment_id=manifest.next_segment_id + 1",
        "next_segment_id=manifest.next_segment_id",
    ),
    Fault(
        "writers remove what a living merge has staged",
        "test_merge_beside.py",
        "storage/manifest.py",
        'int.from_bytes(until, "little") < now_us',
        "True",
    ),
    Fault(
        "compact keeps what merges have staged",
        "test_merge_beside.py",
        "maintenance.py",
        "            discard_staged(self._env, merges=True)\n",
        "",
    ),
    Fault(
        "pages of a killed reader stay pinned",
        "test_env.py",
        "storage/core.py",
        "        if pages > self._pages_seen:\n",
        "        if False:\n",
    ),
)


def apply(fault: Fault, root: Path) -> None:
    """Put the fault into the library below `root`."""
    path = root / "featuredb" / fault.file
    text = path.read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        raise SystemExit(f"{fault.name}: its text stands {text.count(fault.old)} times in {fault.file}, not once")
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")


def survives(fault: Fault, tests: list[str]) -> bool:
    """Whether these files of tests pass in spite of the fault."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        ignore = shutil.ignore_patterns("__pycache__")
        for name in ("featuredb", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", copy)
        apply(fault, copy)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "--override-ini=addopts=",
            "-p",
            "no:cacheprovider",
            *(f"tests/{name}" for name in tests),
        ]
        own = {"PYTHONPATH": str(copy), "NUMBA_CACHE_DIR": str(copy / "numba"), "FEATUREDB_PROFILE": "faults"}
        environment = {**os.environ, **own}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1):
            raise SystemExit(f"{fault.name}: the tests did not run:\n{done.stdout}{done.stderr}")
        return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Check that the tests catch every seeded fault.")
    parser.add_argument("words", nargs="*", help="only faults whose name has one of these words")
    parser.add_argument("--tests", action="append", help="run this file instead of the one that the fault names")
    options = parser.parse_args()
    words = options.words
    chosen = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    survivors = []
    for fault in chosen:
        alive = survives(fault, options.tests or [fault.tests])
        survivors += [fault.name] * alive
        print(f"{'SURVIVED' if alive else 'caught'}: {fault.name}", flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
