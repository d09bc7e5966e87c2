"""What all users of OpenTelemetry's API share: settings, suppression, names, span additions. Only `telemetry` uses the SDK."""
