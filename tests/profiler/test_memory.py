"""What /proc says, read and split; and page-cache drops that are proven, not hoped for."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys

from edgekit.profiler.memory import MemorySampler, MemoryUse, parse_status, read_memory
from edgekit.profiler.pagecache import drop_from_cache

STATUS = """Name:\tpython
State:\tS (sleeping)
VmPeak:\t  999999 kB
VmHWM:\t   54321 kB
VmRSS:\t   40000 kB
RssAnon:\t   30000 kB
RssFile:\t    9000 kB
RssShmem:\t    1000 kB
Threads:\t3
"""


def test_status_is_split_and_shared_memory_counts_as_anonymous():
    use = parse_status(STATUS)
    assert use == MemoryUse(31000 * 1024, 9000 * 1024, 54321 * 1024)


def test_a_zombie_has_no_memory():
    assert parse_status("Name:\tpython\nState:\tZ (zombie)\nThreads:\t1\n") is None


def test_an_own_reading_grows_by_what_was_allocated():
    before = read_memory(os.getpid())
    # A mapping of its own: the allocator may hold pages that earlier tests gave back.
    block = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block[::4096] = b"x" * len(block[::4096])
    after = read_memory(os.getpid())
    assert 30 << 20 < after.anon_bytes - before.anon_bytes < 40 << 20
    assert after.high_water_bytes >= after.anon_bytes + after.file_bytes - (4 << 20)


def test_a_process_that_has_ended_reads_as_none_and_leaves_an_empty_peak():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert read_memory(child.pid) is None
    sampler = MemorySampler(child.pid)
    sampler.start()
    peak = sampler.stop()
    assert (peak.anon_bytes, peak.file_bytes, peak.n_samples) == (0, 0, 0)


def test_a_missing_file_is_never_called_cold(tmp_path):
    assert drop_from_cache([tmp_path / "absent"]) is False


def test_a_file_whose_pages_are_pinned_is_not_called_cold(tmp_path):
    # Pages of a mapping in use stay in the page cache whatever the advice says.
    import mmap

    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(1 << 20))
    with path.open("rb") as stream:
        view = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        assert len(set(view[::4096])) > 1
        assert drop_from_cache([path]) is False
        view.close()
