"""Mixers: layers in which tokens attend to each other, one file each, all on `mixer.Mixer`."""
