"""The control worker: enrolments now, rotations and deletes with the rotation protocol."""

from workers.control.enrolment import Enroller
from workers.control.role import ControlRole

__all__ = ["ControlRole", "Enroller"]
