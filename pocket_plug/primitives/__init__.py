"""What every package stands on and what knows none of them: time, waiting, forks, names, type checks, and what may be shown."""
