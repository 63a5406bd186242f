"""Depth policies: how many recursions each token takes, one file each, all on `policy.Policy`."""
