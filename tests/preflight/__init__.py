"""What is read off compiled programs, and the command that does it."""
