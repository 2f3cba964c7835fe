"""Ablations: what to run (plan), running it (launch), what it says (statistics, report, curves)."""
