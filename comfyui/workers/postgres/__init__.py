"""The worker for a table of tasks in Postgres or Supabase. Only `queue` knows asyncpg."""
