"""Mixers let tokens see each other, one file each; all extend `recursia.mixers.mixer.Mixer`."""
