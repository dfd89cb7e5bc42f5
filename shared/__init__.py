"""What the projects share."""
