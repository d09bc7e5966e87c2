"""Used by all packages, and uses none of them but `errors`: durations, waiting, forks, names, type checks, redaction."""
