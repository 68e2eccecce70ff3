"""The same handler on job platforms; each worker is an adapter, and only its own file knows its platform's SDK."""
