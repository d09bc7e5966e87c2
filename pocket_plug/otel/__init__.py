"""What telemetry may say, and how it names it, for whatever speaks to OpenTelemetry's API. The SDK is `telemetry`'s alone."""
