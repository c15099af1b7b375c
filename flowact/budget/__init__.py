"""What a recipe will cost, counted before anything is built on a device.

A room of its own above the stages: it runs a stage's own training step and the window engine, with networks that have no data.
"""

from flowact.budget.display import show
from flowact.budget.facts import Wishes
from flowact.budget.plan import UTILISATION, make_plan
from flowact.budget.records import Plan
from flowact.devices import DEVICES, Device, find_device

__all__ = ["DEVICES", "UTILISATION", "Device", "Plan", "Wishes", "find_device", "make_plan", "show"]
