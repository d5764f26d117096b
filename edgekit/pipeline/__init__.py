"""The library's main functions (export, verify, profile, ...), one file for each."""
