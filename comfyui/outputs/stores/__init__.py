"""Where output files are kept for their readers: a folder or an S3 bucket."""
