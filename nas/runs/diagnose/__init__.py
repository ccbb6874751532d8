"""`nas diagnose`: how good a selector's architecture gradient is, against the exact one."""
