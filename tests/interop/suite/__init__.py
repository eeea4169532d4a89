"""The interop suite of Sidemint; `tests/interop/run` starts it."""
