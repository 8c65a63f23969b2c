"""The composition root: opens resources and wires use cases. Only this package names adapters."""
