"""A PostgreSQL server for the tests that need one."""

from pocket_plug.testing.fixtures import postgres_server as postgres_server
