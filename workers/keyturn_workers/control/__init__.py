"""The control worker: enrollments, rotations, sweeps and deletes (SPEC 5.4, 6, 8)."""

from keyturn_workers.control.deletion import Deleter
from keyturn_workers.control.enrollment import Enroller
from keyturn_workers.control.handler import ControlHandler
from keyturn_workers.control.rotation import Rotator

__all__ = ["ControlHandler", "Deleter", "Enroller", "Rotator"]
