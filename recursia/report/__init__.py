"""What a run did and learned, as one HTML page that opens from disk without a network."""
