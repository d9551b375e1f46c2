"""What was trained is used: one backbone, many adapters, text and pictures, for many users at once."""
