"""Feed-forwards: position-wise layers, one file each.

All extend `recursia.feedforward.feedforward.FeedForward`.
"""
