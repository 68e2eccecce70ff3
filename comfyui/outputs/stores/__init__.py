"""Stores for output files: an S3 bucket or Supabase, and files that appear whole in a folder."""
