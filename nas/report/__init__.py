"""What a user reads: tables on stdout."""
