"""Residual arrangements of a mixer and a feed-forward, one file each; none knows it is shared.

A kind of block is a subclass of `recursia.blocks.block.Block`. A published block is a preset of an
arrangement, a mixer (`recursia.mixers`) and a feed-forward (`recursia.feedforward`):
`recursia.configs.blocks` has them by name.
"""
