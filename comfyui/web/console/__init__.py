"""The console: pages below `/console` that show what runs, what waits and what came, and change it."""
