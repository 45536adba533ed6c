"""Schedules, denoisers, the one sampling loop, the one trainer, devices."""
