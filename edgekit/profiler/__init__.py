"""The profiler: how fast an artifact runs, and how much memory it takes."""
