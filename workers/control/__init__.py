"""The control worker: enrolments, rotations, sweeps and deletes (SPEC 5.4, 6, 8)."""

from workers.control.deletion import Deleter
from workers.control.enrolment import Enroller
from workers.control.role import ControlRole
from workers.control.rotation import Rotator

__all__ = ["ControlRole", "Deleter", "Enroller", "Rotator"]
