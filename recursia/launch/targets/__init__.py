"""Targets: what starts a job on its hosts, one file each."""
