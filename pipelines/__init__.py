"""Distributed work around ``samtok``: Ray, object storage, tracking."""
