"""From a report to the loggers of a trainer."""
