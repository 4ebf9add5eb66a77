"""How much anybody may ask of a simulator's own socket."""

MOST_CALLS = 64
"""Calls under way, streams included."""

BOUNDS = (
    ("grpc.max_receive_message_length", 1 << 16),
    ("grpc.max_metadata_size", 1 << 14),
    ("grpc.absolute_max_metadata_size", 1 << 14),
    ("grpc.max_concurrent_streams", MOST_CALLS),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)
"""Options of a server: bytes of a request and its headers, and calls of one connection."""
