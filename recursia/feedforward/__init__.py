"""Feed-forwards transform each token alone, one file each.

All extend `recursia.feedforward.feedforward.FeedForward`.
"""
