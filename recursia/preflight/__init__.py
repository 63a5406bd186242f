"""What a run will need and do on machines that are not here, read off the compiled program."""
