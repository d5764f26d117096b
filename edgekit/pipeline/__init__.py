"""The library's verbs, one file each: what a command or a program calls."""
