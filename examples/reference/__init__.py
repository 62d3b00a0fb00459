"""The reference system, one job a file; the scripts beside this folder are what is typed."""
