"""What people see of a GRPO run: metrics, alarms, checks, reports."""
