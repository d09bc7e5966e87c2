"""Durable runs: a run's progress is committed together with its nodes' writes, so that it resumes where it stopped."""
