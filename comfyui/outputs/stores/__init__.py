"""Stores for output files: a folder or an S3 bucket."""
