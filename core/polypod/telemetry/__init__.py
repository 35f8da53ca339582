"""The server's own figures: metrics for Prometheus, spans for OpenTelemetry. Both are off unless configured.

Nothing else imports those libraries. The heart and the wire tell what happens through two small Protocols,
`polypod.lifecycle.ports.Telemetry` and `polypod.api.interceptors.CallWatch`; this room implements both.
"""
