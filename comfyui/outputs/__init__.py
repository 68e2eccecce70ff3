"""Files on their way out: found in the history, converted, stored, and written into answers."""
