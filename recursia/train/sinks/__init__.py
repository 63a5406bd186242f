"""What gets the rows and samples of a run, one file each: JSON Lines, TensorBoard, and others."""
